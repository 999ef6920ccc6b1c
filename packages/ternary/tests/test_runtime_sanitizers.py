"""The C core under the address, undefined-behaviour and thread sanitizers, on a driver of its own without Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import ternary

COMPILER = next((name for name in ("gcc", "clang", "cc") if shutil.which(name)), None)
PACKAGE = Path(ternary.__file__).parent
HEADERS = [f"-I{PACKAGE / room / 'csrc'}" for room in ("runtime", "llm")]
UNITS = [*HEADERS, *sorted(PACKAGE.glob("*/csrc/*.c")), "-lm"]
DRIVERS = pytest.mark.parametrize(
    "driver", [Path(__file__).with_name(f"{n}_check.c") for n in ("core", "chain", "llm", "threads")]
)


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
@DRIVERS
def test_core_is_clean(tmp_path, driver, sanitizers) -> None:
    """Every path over odd shapes on exactly sized buffers: right sums, no report."""
    program = tmp_path / "check"
    flags = ["-std=c99", "-O1", "-g", "-ffp-contract=off", "-pthread", "-fno-sanitize-recover=all"]
    built = subprocess.run(
        [COMPILER, *flags, f"-fsanitize={sanitizers}", "-o", program, driver, *UNITS],
        capture_output=True,
        text=True,
    )
    if built.returncode:
        probe = tmp_path / "probe.c"
        probe.write_text("int main(void) { return 0; }\n")
        works = subprocess.run([COMPILER, f"-fsanitize={sanitizers}", "-o", program, probe], capture_output=True)
        if works.returncode:
            pytest.skip(f"{COMPILER} has no {sanitizers} sanitizer here")
    assert built.returncode == 0, built.stderr
    # Leaks are looked for by the address sanitizer; tracing tools and containers may forbid that one part.
    done = subprocess.run(
        [program], capture_output=True, text=True, env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    )
    if "LeakSanitizer has encountered a fatal error" in done.stderr or "unexpected memory mapping" in done.stderr:
        pytest.skip("the sanitizer cannot run in this container: " + done.stderr.strip().splitlines()[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@DRIVERS
def test_core_compiles_without_a_warning(tmp_path, driver) -> None:
    """Strict C99 with all warnings on, the driver included."""
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-pthread"]
    program = tmp_path / "check"
    done = subprocess.run([COMPILER, *flags, "-o", program, driver, *UNITS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
