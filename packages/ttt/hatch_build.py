"""Compiles the search's core when the package is built or installed; without a compiler the package is pure Python."""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("src/ttt/_grid/compose/csrc")
CORE = Path("src/ttt/_grid/compose/libttt_compose.so")
FLAGS = ["-std=c99", "-O3", "-fPIC", "-shared", "-fvisibility=hidden"]


def digest(root: Path) -> str:
    """Return what the core says of its sources, by the package's own rule."""
    found: str = runpy.run_path(str(root / "src/ttt/_grid/compose/sources.py"))["digest"](root / SOURCES)
    return found


def compilers() -> list[list[str]]:
    """Commands to try: the one that the user names, the one that built this Python, the usual ones."""
    named = [os.environ.get("CC"), sysconfig.get_config_var("CC"), "cc", "gcc", "clang"]
    commands = [shlex.split(name)[:1] for name in named if name and shlex.split(name)]
    return [command for command in commands if shutil.which(command[0])]


def compile_core(root: Path, core: Path) -> str | None:
    """Compile the core into a file; None on success, else why not."""
    files = sorted((root / SOURCES).iterdir())
    built_from = digest(root)
    if core.exists() and built_from.encode() in core.read_bytes():
        return None
    sources = [str(file) for file in files if file.suffix == ".c"]
    why = "no C compiler found"
    for command in compilers():
        # To a name of its own and moved: a running process keeps the library that it has mapped.
        built = core.with_suffix(f".{os.getpid()}.tmp")
        try:
            run = [*command, *FLAGS, f'-DSOURCES="{built_from}"', "-o", str(built), *sources]
            done = subprocess.run(run, capture_output=True, text=True, timeout=300)
            if done.returncode == 0:
                os.replace(built, core)
                return None
            why = f"{shlex.join(command)} failed: {done.stderr.strip()[-500:]}"
        except (OSError, subprocess.TimeoutExpired) as error:
            why = f"{shlex.join(command)} failed: {error}"
        finally:
            with suppress(OSError):
                built.unlink()
    with suppress(OSError):  # a stale core is no core, and where it cannot be removed it is not loaded
        core.unlink()
    return why


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled core to wheels and editable installs where it can be compiled."""

    _elsewhere: str | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a failure is said and leaves a pure wheel."""
        if self.target_name != "wheel":
            return
        core = Path(self.root, CORE)
        if version != "editable" and not os.access(core.parent, os.W_OK):
            # In a read-only checkout the core is compiled elsewhere, for the wheel alone.
            self._elsewhere = tempfile.mkdtemp()
            core = Path(self._elsewhere, CORE.name)
        why = compile_core(Path(self.root), core)
        if why is not None:
            print(f"ttt: the compiled core is left out, the search will run in numpy: {why}", file=sys.stderr)
            return
        if self._elsewhere:
            build_data["force_include"][str(core)] = str(CORE.relative_to("src"))
        else:
            build_data["artifacts"].append(f"/{CORE}")
        build_data["pure_python"] = False
        # Loaded by ctypes: bound to the platform, not to a version of Python.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled outside the checkout."""
        if self._elsewhere:
            shutil.rmtree(self._elsewhere, ignore_errors=True)
