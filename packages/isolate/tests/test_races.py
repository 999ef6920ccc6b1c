"""What another process or thread does in between: lists, locks, removes and replaces at the same time."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import isolate
from isolate import EnvironmentStore, Host, Manifest, read_manifest
from isolate._canaries import Canaries
from isolate._guardian import Guardian
from isolate._locks import Locks
from isolate._places import put_in_place, try_locked
from isolate._requirements import local_digest
from isolate._spares import start

SECONDS = 0.7


def at_once(*works: Callable[[], object]) -> None:
    """Repeat each of them in a thread of its own for a while; what one raises is raised here."""
    end = time.monotonic() + SECONDS

    def repeat(work: Callable[[], object]) -> None:
        work()
        while time.monotonic() < end:
            work()

    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(repeat, work) for work in works]:
            done.result()


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """An extension without dependencies."""
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("name: a\n")
    (folder / "main.py").write_text("def fine(): return 1\n")
    return read_manifest(folder)


def test_all_that_a_store_does_at_once(tmp_path: Path, manifest: Manifest) -> None:
    """Build, repair, verify, list and collect one environment at once: nothing fails, and nothing is left."""
    root = tmp_path / "store"
    _, key = EnvironmentStore(root).key_of(manifest)

    def store() -> EnvironmentStore:
        return EnvironmentStore(root)  # as many processes, each with its own

    at_once(
        lambda: store().ensure(manifest),
        lambda: store().ensure(manifest, anew=True),
        lambda: store().verify(key),
        lambda: store().find(key),
        lambda: store().gc(set()),
        lambda: store().gc(set()),
        lambda: store().gc(set(), dry_run=True),
    )
    assert store().verify(store().ensure(manifest).key) == []
    store().gc(set())
    assert list((root / "tmp").iterdir()) == list((root / "envs").iterdir()) == []


def exchanges(folder: Path) -> bool:
    """Whether the file system exchanges names; without that, there is a moment with nothing under the name."""
    for name in ("new", "place"):
        (folder / name).mkdir()
    put_in_place(folder / "new", folder / "place", folder / "aside")
    return (folder / "new").exists()


def test_an_environment_in_use_is_there_all_the_time(tmp_path: Path, manifest: Manifest) -> None:
    """While a host uses it, others repair and collect: it is never missing, damaged or half there."""
    if not exchanges(tmp_path):
        pytest.skip("this file system does not exchange names")
    store = EnvironmentStore(tmp_path / "store")
    with store.hold(store.key_of(manifest)[1]):
        environment = store.ensure(manifest)

        def use() -> None:
            # Again: the way to it may lead through the folder that is being replaced.
            assert any(environment.python.exists() for _ in range(10))
            assert store.find(environment.key) is not None
            assert store.verify(environment.key) == []

        at_once(use, use, lambda: EnvironmentStore(store.root).ensure(manifest, anew=True), lambda: store.gc(set()))


def test_what_is_built_is_not_collected(tmp_path: Path, manifest: Manifest) -> None:
    """The builder's lock protects the lock file that uv reads, and the environment; who repairs need not hold it."""
    store = EnvironmentStore(tmp_path / "store")
    key = store.ensure(manifest).key
    with try_locked(store.root / "locks" / f"{key}.build.flock") as held:
        assert held
        assert not store.discard(key)
        assert store.gc(set()) == []
    assert store.find(key) is not None
    assert store.discard(key)
    assert store.find(key) is None


def test_a_lock_renewed_while_a_build_waits(tmp_path: Path, manifest: Manifest) -> None:
    """What is built is what the key says, also if `isolate lock` writes another lock in between."""
    store = EnvironmentStore(tmp_path / "store")
    lock = manifest.directory / manifest.lock_file
    elsewhere = '==1; sys_platform == "elsewhere"\n'
    lock.write_text(f"{Locks(manifest, store.policy, []).header}\nfirst{elsewhere}")
    _, key = store.key_of(manifest)
    store.hold(key).__exit__(None, None, None)  # makes the folder of locks
    waiting = threading.Event()
    looked = EnvironmentStore(store.root)
    find = looked.find

    def noticed(found: str) -> isolate.Environment | None:
        waiting.set()
        return find(found)

    looked.find = noticed  # type: ignore[method-assign]
    with ThreadPoolExecutor() as pool:
        with try_locked(store.root / "locks" / f"{key}.build.flock"):
            building = pool.submit(looked.ensure, manifest)
            assert waiting.wait(60)
            lock.write_text(f"{Locks(manifest, store.policy, []).header}\nsecond{elsewhere}")
        assert building.result().key == key
    assert (store.root / "locks" / f"{key}.txt").read_text() == f"first{elsewhere}"
    assert store.ensure(manifest).key != key


def test_a_local_dependency_that_is_being_edited(tmp_path: Path) -> None:
    """Editors make and remove files while the folder is read: its hash leaves them out."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "module.py").write_text("x = 1\n")
    requirement = Requirement(f"local @ {tmp_path.as_uri()}")

    def edit() -> None:
        for number in range(50):
            (tmp_path / "deep" / f".{number}.swp").write_text("")
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "file").write_text("")
        shutil.rmtree(tmp_path / "other")
        for number in range(50):
            (tmp_path / "deep" / f".{number}.swp").unlink()

    before = local_digest(requirement)
    at_once(edit, lambda: local_digest(requirement))
    assert local_digest(requirement) == before


def test_canaries_that_were_removed_are_made_again() -> None:
    """A program that cleans /tmp must not make a worker's report better than it is."""
    canaries = Canaries()
    try:
        first = canaries.targets()
        assert canaries.targets() == first
        for name in ("canary", "unix", "datagram"):
            os.unlink(canaries.targets()[name])
            again = canaries.targets()
            assert Path(again["canary"]).read_text() == "canary"
            assert all(os.path.exists(again[kind]) for kind in ("unix", "datagram"))
        shutil.rmtree(Path(canaries.targets()["canary"]).parent)
        assert Path(canaries.targets()["canary"]).read_text() == "canary"
    finally:
        left = Path(canaries.targets()["canary"]).parent
        canaries.close()
    assert not left.exists()
    assert not Path(first["canary"]).parent.exists()


def test_the_guardian_forgets_a_group_while_its_number_is_taken() -> None:
    """After the wait another process can get the number; the guardian would kill that one's group."""
    taken = []

    class Watching(Guardian):
        """Notes whether the process is still there when its group is reported to have ended."""

        def note(self, operation: str, group: int) -> None:
            taken.append((operation, os.path.exists(f"/proc/{group}")))

    guardian = Watching()
    start([sys.executable, "-I", "-S", "-c", "input()"], {}, Path("/"), guardian).end(guardian)
    assert taken == [("+", True), ("-", True)]


def test_one_function_called_first_from_many_threads(tmp_path: Path) -> None:
    """As a pool maps it: one process is started, and every call returns; functions of one text keep their own times."""
    begin = threading.Barrier(6)

    def slow(seconds: float) -> float:
        import time

        time.sleep(seconds)
        return seconds

    with Host(tmp_path / "store") as host, ThreadPoolExecutor(6) as pool:
        same = isolate.function(slow, host=host)

        def call(number: int) -> float:
            begin.wait()
            return same(0) if number % 2 else isolate.run(slow, 0, host=host)

        assert list(pool.map(call, range(6))) == [0] * 6
        assert len(host.extensions) == 1
        with pytest.raises(isolate.errors.CallTimeoutError):
            isolate.run(slow, 60, host=host, timeout=0.1)
        assert isolate.run(slow, 0.3, host=host, timeout=60) == 0.3
        assert same(0.3) == 0.3
        assert len(host.extensions) == 1
