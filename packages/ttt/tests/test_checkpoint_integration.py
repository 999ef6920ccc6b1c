"""Checkpoints: whole or absent, verified to the bit, versioned among concurrent writers, resumed exactly."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, integer_dtypes

from ttt.checkpoint import FORMAT, CheckpointStore, _sealed
from ttt.errors import (
    CheckpointNotFoundError,
    CheckpointWriteError,
    CorruptCheckpointError,
    ForeignCheckpointError,
)

STATE = {"weight": np.arange(12, dtype=np.float32).reshape(3, 4), "step": np.array([7], np.int64)}


@pytest.fixture
def store(integration_test_dir: Path) -> CheckpointStore:
    """An empty store."""
    return CheckpointStore(integration_test_dir / "checkpoints", kind="test")


class TestSaveLoad:
    """What is written is what is read."""

    def test_round_trip(self, store: CheckpointStore) -> None:
        """Tensors, description and score come back."""
        assert store.save(STATE, {"epoch": 3, "rng": [1, 2]}, score=0.5) == 1
        found = store.load()
        assert (found.version, found.about, found.score) == (1, {"epoch": 3, "rng": [1, 2]}, 0.5)
        for name, tensor in STATE.items():
            np.testing.assert_array_equal(found.tensors[name], tensor)
            assert found.tensors[name].dtype == tensor.dtype

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        tensors=st.dictionaries(
            st.text("abc.0", min_size=1), arrays(integer_dtypes(), array_shapes(min_dims=0, min_side=0)), max_size=3
        ),
        about=st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans())),
    )
    def test_any_state(self, integration_test_dir: Path, tensors: Any, about: Any) -> None:
        """Any shape, empty and scalar ones too, and any JSON description."""
        native = {k: np.asarray(v, v.dtype.newbyteorder("=")) for k, v in tensors.items()}
        store = CheckpointStore(integration_test_dir / "any")
        found = store.load(store.save(native, about))
        assert found.about == about
        assert found.tensors.keys() == native.keys()
        assert all(np.array_equal(found.tensors[k], native[k]) for k in native)

    def test_refuses_what_is_no_state(self, store: CheckpointStore) -> None:
        """A score that is not finite and a description that is no JSON are refused, and nothing is left."""
        with pytest.raises(ValueError, match="finite"):
            store.save(STATE, score=float("nan"))
        with pytest.raises(ValueError, match="JSON"):
            store.save(STATE, {"x": float("inf")})
        with pytest.raises(ValueError, match="JSON"):
            store.save(STATE, {"x": {1, 2}})
        with pytest.raises(CheckpointNotFoundError, match="holds no checkpoint"):
            store.load()


class TestVersions:
    """History, best, and cleaning up."""

    def test_history_and_best(self, store: CheckpointStore) -> None:
        """Versions are numbered, the best is the highest score, the newest of equals."""
        for score in (0.1, 0.9, None, 0.9, 0.3):
            store.save(STATE, score=score)
        assert [(e.version, e.score) for e in store.history()] == [(1, 0.1), (2, 0.9), (3, None), (4, 0.9), (5, 0.3)]
        assert store.best().version == 4
        assert store.load(2).version == 2
        with pytest.raises(CheckpointNotFoundError, match="no version 9"):
            store.load(9)

    def test_prune_keeps_the_newest_and_the_best(self, store: CheckpointStore) -> None:
        """Numbers of removed versions are not given again, and an old writer's remains go."""
        for score in (0.1, 0.9, 0.2, 0.3):
            store.save(STATE, score=score)
        left = store.folder / ".writing-dead"
        left.mkdir()
        os.utime(left, (0, 0))
        assert store.prune(keep=1) == [1, 3]
        assert store.versions() == [2, 4]
        assert not left.exists()
        assert store.save(STATE) == 5
        with pytest.raises(ValueError, match="wanted 1 or more"):
            store.prune(0)

    def test_a_number_is_not_given_again_after_damage(self, store: CheckpointStore) -> None:
        """The highest version stays though it is damaged, since the next number follows it."""
        for _ in range(3):
            store.save(STATE)
        (store.folder / "v00000003" / "payload.safetensors").write_bytes(b"")
        assert store.prune(keep=1) == [1]
        assert store.versions() == [2, 3]
        assert store.save(STATE) == 4

    def test_nothing_has_a_score(self, store: CheckpointStore) -> None:
        """Without a score there is no best."""
        store.save(STATE)
        with pytest.raises(CheckpointNotFoundError, match="no sound version has a score"):
            store.best()


class TestIntegrity:
    """A version with one wrong bit is refused, and an earlier one offered."""

    def test_every_flipped_bit_is_found(self, store: CheckpointStore) -> None:
        """Every bit of the manifest and of the payload, one at a time."""
        store.save(STATE)
        store.save(STATE, {"epoch": 1})
        for path in sorted((store.folder / "v00000002").iterdir()):
            whole = path.read_bytes()
            for at in range(len(whole)):
                data = bytearray(whole)
                data[at] ^= 1 << at % 8
                path.write_bytes(bytes(data))
                with pytest.raises((CorruptCheckpointError, ForeignCheckpointError)):
                    store._read(2)
            path.write_bytes(whole)
        assert store.load().about == {"epoch": 1}

    @pytest.mark.parametrize("name", ["payload.safetensors", "manifest.json"])
    def test_truncation_and_loss(self, store: CheckpointStore, name: str) -> None:
        """A shorter, longer, empty or missing file is refused with the reason, and version 1 offered."""
        store.save(STATE)
        store.save(STATE)
        path = store.folder / "v00000002" / name
        whole = path.read_bytes()
        for data in (whole[:-1], whole + b" ", b""):
            path.write_bytes(data)
            with pytest.raises(CorruptCheckpointError, match="version 1 is sound"):
                store.load()
        path.unlink()
        with pytest.raises(CorruptCheckpointError, match="is missing"):
            store.load()
        sound = store.newest_sound()
        assert sound is not None
        assert sound.version == 1
        assert store.history()[1].fault is not None

    def test_swapped_payloads(self, store: CheckpointStore) -> None:
        """The payload of another version does not pass for this one's."""
        store.save(STATE)
        store.save({k: v + 1 for k, v in STATE.items()})
        one, two = (store.folder / f"v0000000{i}" / "payload.safetensors" for i in (1, 2))
        swapped = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(swapped)
        for version in (1, 2):
            with pytest.raises(CorruptCheckpointError, match="no earlier version is sound"):
                store.load(version)
        assert store.newest_sound() is None

    def test_foreign_files(self, store: CheckpointStore) -> None:
        """A newer format, another kind, another program's JSON and a pickle are refused by name."""
        store.save(STATE)
        store.save(STATE)
        path = store.folder / "v00000002" / "manifest.json"
        body = json.loads(path.read_bytes())
        body.pop("sha256")
        for data, message in (
            (_sealed({**body, "format_version": 2}), "written in format 2, this ttt reads 1"),
            (_sealed({**body, "kind": "other"}), "a state of 'other', wanted 'test'"),
            (b"{}", "is not a manifest of ttt-checkpoint"),
            (pickle.dumps(body), "is a pickle"),
        ):
            path.write_bytes(data)
            with pytest.raises(ForeignCheckpointError, match=message):
                store.load()

    def test_a_pickle_is_never_opened(self, store: CheckpointStore) -> None:
        """A pickle as payload, with a manifest that vouches for it, is not executed."""
        store.save(STATE)
        folder = store.folder / "v00000001"
        trap = folder.parent / "trap"
        data = pickle.dumps(_Trap(str(trap)))
        (folder / "payload.safetensors").write_bytes(data)
        body = json.loads((folder / "manifest.json").read_bytes())
        body.pop("sha256")
        body["files"]["payload.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "manifest.json").write_bytes(_sealed(body))
        with pytest.raises(CorruptCheckpointError):
            store.load()
        assert not trap.exists()

    def test_format_is_named(self) -> None:
        """The format's name is part of the format."""
        assert FORMAT == "ttt-checkpoint"


class _Trap:
    """Leaves a trace when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path(self.path).touch, ()


WRITER = """
import sys
import numpy as np
from ttt.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1], kind="test")
for i in range(int(sys.argv[2])):
    print(store.save({"x": np.full(50_000, i, np.float32)}, {"i": i, "by": sys.argv[3]}), flush=True)
"""


def start_writer(store: CheckpointStore, count: int, by: str) -> subprocess.Popen[str]:
    """A process that writes versions and prints their numbers."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store.folder), str(count), by],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


class TestConcurrentOperations:
    """Many writers, writers that are killed, and a full disk."""

    def test_two_processes_lose_nothing(self, store: CheckpointStore) -> None:
        """Two processes write 100 versions each: 200 distinct, every one verified, each writer's in order."""
        writers = [start_writer(store, 100, by) for by in "ab"]
        numbers = [[int(line) for line in w.communicate(timeout=250)[0].split()] for w in writers]
        assert sorted(numbers[0] + numbers[1]) == list(range(1, 201)) == store.versions()
        assert all(n == sorted(n) for n in numbers)
        entries = store.history()
        assert all(e.fault is None for e in entries)
        written = {(c.about["by"], c.about["i"]) for c in map(store.load, store.versions())}
        assert len(written) == 200

    @pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
    def test_kill_in_a_loop_of_writes(self, store: CheckpointStore) -> None:
        """SIGKILL at random moments of 50 writes, five times: what is listed verifies, what was printed is there."""
        printed: list[int] = []
        rng = random.Random(0)
        for round_ in range(5):
            writer = start_writer(store, 50, str(round_))
            assert writer.stdout is not None
            printed.append(int(writer.stdout.readline()))
            time.sleep(rng.uniform(0.0, 0.15))
            writer.send_signal(signal.SIGKILL)
            printed += [int(line) for line in writer.communicate(timeout=250)[0].split("\n")[:-1]]
        assert all(e.fault is None for e in store.history())
        assert set(printed) <= set(store.versions())

    def test_readers_beside_a_writer_and_a_pruner(self, store: CheckpointStore) -> None:
        """While one process writes, reading and pruning here never see a broken version."""
        writer = start_writer(store, 60, "w")
        while writer.poll() is None:
            assert all(e.fault is None for e in store.history())
            store.prune(keep=3)
        assert len(writer.communicate()[0].split()) == 60
        assert store.load().about == {"i": 59, "by": "w"}

    @pytest.mark.skipif(os.name != "posix", reason="limits the size of files with setrlimit")
    def test_a_full_disk_loses_nothing(self, store: CheckpointStore) -> None:
        """When the system refuses to write on, the error is typed, nothing half-written stays, version 1 is sound."""
        store.save(STATE)
        code = """
import resource, signal, sys
import numpy as np
from ttt.checkpoint import CheckpointStore
from ttt.errors import CheckpointWriteError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.dont_write_bytecode = True  # Python would keep what it wrote of a module
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    CheckpointStore(sys.argv[1], kind="test").save({"x": np.zeros(1_000_000)})
except CheckpointWriteError as error:
    print("refused:", error)
"""
        out = subprocess.run(
            [sys.executable, "-c", code, str(store.folder)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout
        assert out.startswith("refused:")
        assert os.listdir(store.folder) == ["v00000001"]
        assert store.load().version == 1

    @pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None,
        reason="mounts a small file system, which takes root",
    )
    def test_a_truly_full_file_system(self, store: CheckpointStore) -> None:
        """On a file system of 1 MB the writes that fit are kept and the one that does not is refused."""
        store.folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(store.folder)], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("this machine does not let root mount")
        try:
            kept = 2
            for value in range(kept):
                store.save({"x": np.full(40_000, value, np.float64)})
            with pytest.raises(CheckpointWriteError, match="earlier ones remain"):
                store.save({"x": np.full(80_000, 9, np.float64)})
            assert store.versions() == list(range(1, kept + 1))
            assert all(e.fault is None for e in store.history())
        finally:
            subprocess.run(["umount", str(store.folder)], check=True)

    def test_no_permission(self, integration_test_dir: Path) -> None:
        """A folder that cannot be made is a typed error."""
        (integration_test_dir / "file").write_text("")
        with pytest.raises(CheckpointWriteError, match="no new version was written"):
            CheckpointStore(integration_test_dir / "file" / "store").save(STATE)
