"""Containers: threads by the processors' quota, and a model that does not fit into memory is refused with figures."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import textwrap
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from ternary._limits import memory_limit, processors
from ternary.errors import ModelTooLargeError
from ternary.llm import ModelConfig, load
from ternary.llm._batching import Scheduler
from ternary.llm._modelfile import writing

ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
CONFIG = ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=64)
linux = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")


def groups_of(tmp_path, line, **files):
    """A file of control groups and a mount with the files of the groups."""
    (tmp_path / "cgroup").write_text(line + "\n")
    for name, text in files.items():
        file = tmp_path / "mount" / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return tmp_path / "cgroup", tmp_path / "mount"


@linux
@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/a/b", {"a__b__cpu_dot_max": "max 100000"}, ALLOWED),
        ("0::/a/b", {"a__b__cpu_dot_max": "100000 100000"}, 1),
        ("0::/a/b", {"a__cpu_dot_max": "150000 100000"}, 1),  # of the group above
        ("0::/a/b", {"a__b__cpu_dot_max": "20000 100000"}, 1),  # less than one
        ("0::/a/b", {"a__b__cpu_dot_max": "nonsense"}, ALLOWED),
        ("0::/../x", {"cpu_dot_max": "100000 100000"}, 1),  # a namespace that is not mounted
        ("1:cpu,cpuacct:/a", {"cpu__a__cpu_dot_cfs_quota_us": "100000", "cpu__a__cpu_dot_cfs_period_us": "100000"}, 1),
        ("1:cpu:/a", {"cpu__a__cpu_dot_cfs_quota_us": "-1", "cpu__a__cpu_dot_cfs_period_us": "100000"}, ALLOWED),
        ("1:cpu:/a", {"cpu__a__cpu_dot_cfs_quota_us": "100000", "cpu__a__cpu_dot_cfs_period_us": "0"}, ALLOWED),
        ("", {}, ALLOWED),
    ],
)
def test_processors_within_the_quota(line, files, expected, tmp_path) -> None:
    """Groups of version 1 and 2, those above count too, and what cannot be read is no limit."""
    assert processors(*groups_of(tmp_path, line, **files)) == expected


@linux
@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/a", {"a__memory_dot_max": "1000000"}, 1000000),
        ("0::/a", {"a__memory_dot_max": "max", "memory_dot_max": "2000000"}, 2000000),
        ("4:memory:/a", {"memory__a__memory_dot_limit_in_bytes": "3000000"}, 3000000),
    ],
)
def test_memory_within_the_limit(line, files, expected, tmp_path) -> None:
    """The smallest limit, and the file that says so."""
    found = memory_limit(*groups_of(tmp_path, line, **files))
    assert found is not None
    assert (found.nbytes, "memory" in found.source) == (expected, True)


@linux
def test_without_groups_the_machine_is_the_limit(tmp_path) -> None:
    """A limit that means "none" is none."""
    unlimited = groups_of(tmp_path, "4:memory:/a", memory__a__memory_dot_limit_in_bytes=str((1 << 63) - 4096))
    assert memory_limit(*unlimited) == memory_limit(tmp_path / "none", tmp_path / "none")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model file of 400 MB that takes no disk: its weights are a hole."""
    path = tmp_path_factory.mktemp("large") / "large.ternary"
    config = replace(CONFIG, vocabulary=1 << 20, hidden=384, tied=True)
    with writing(path, config, {}, b"") as writer:
        for name in list(writer._places):
            writer.finish_tensor(name)
    return path


PROGRAM = """
    import sys
    from ternary.errors import ModelTooLargeError
    from ternary.llm import load
    try:
        print(load(sys.argv[1]).engine.threads)
    except ModelTooLargeError as e:
        print(e)
"""


def in_child(path, before="", **given):
    """What a child prints that opens a model after some other statements."""
    code = textwrap.dedent(before) + textwrap.dedent(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=250, **given
    )
    return done.stdout.strip()


@linux
def test_a_model_larger_than_the_address_space_is_refused(large) -> None:
    """With `ulimit -v`, before anything is mapped."""
    limit = 350 << 20
    before = f"""
        import numpy, ternary.llm, resource
        resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
    """
    said = in_child(large, before)
    assert f"{limit:,} (RLIMIT_AS)" in said
    assert f"{large.stat().st_size:,} bytes" in said


@linux
def test_a_model_larger_than_what_is_left_of_the_address_space_is_refused(large) -> None:
    """The limit would hold the model, but not what the process has taken already too."""
    before = """
        import mmap, re, resource
        import ternary.llm
        taken = mmap.mmap(-1, 600 << 20)
        size = int(re.search("VmSize: *([0-9]+)", open("/proc/self/status").read().replace("\\t", "")).group(1)) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size + (200 << 20), size + (200 << 20)))
    """
    said = in_child(large, before)
    assert said.startswith(f"{large} does not fit ({large.stat().st_size:,} bytes): this process gets no more memory")


@pytest.fixture
def group():
    """Make a control group of a controller, version 1, for this test."""
    made = []

    def make(controller, **settings):
        folder = Path("/sys/fs/cgroup") / controller / f"ternary-test-{uuid.uuid4().hex[:8]}"
        try:
            folder.mkdir()
            made.append(folder)
            for name, value in settings.items():
                (folder / name.replace("_dot_", ".")).write_text(str(value))
        except OSError as e:
            pytest.skip(f"control groups cannot be made here: {e}")
        return f"import os; open('{folder}/cgroup.procs', 'w').write(str(os.getpid()))\n"

    yield make
    end = time.monotonic() + 60
    for folder in made:
        while folder.exists():  # some kernels let go of a child that has ended a moment later
            try:
                folder.rmdir()
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)


@linux
def test_a_real_group_limits_the_threads(group, tmp_path) -> None:
    """In a group with the quota of one processor a model runs one thread."""
    random = runpy.run_path(str(Path(__file__).with_name("llm_random.py")))
    random["write_random"](CONFIG, tmp_path / "m.ternary")
    join = group("cpu", cpu_dot_cfs_period_us=100000, cpu_dot_cfs_quota_us=100000)
    assert in_child(tmp_path / "m.ternary", join) == "1"


@linux
def test_a_real_group_limits_the_memory(group, large) -> None:
    """In a group of 256 MB a model of 400 MB is refused with the file that holds the limit."""
    join = group("memory", memory_dot_limit_in_bytes=256 << 20)
    said = in_child(large, join)
    assert "268,435,456" in said
    assert "memory.limit_in_bytes" in said


def test_caches_of_parallel_requests_count(tmp_path) -> None:
    """A server that could run out of memory under load does not start."""
    random = runpy.run_path(str(Path(__file__).with_name("llm_random.py")))
    random["write_random"](CONFIG, tmp_path / "m.ternary")
    with load(tmp_path / "m.ternary", threads=1) as model:
        model.check_memory(8)
        with pytest.raises(
            ModelTooLargeError, match=r"caches for 1000000000000 x 64 tokens.*or give a smaller context"
        ):
            Scheduler(model, parallel=10**12)
