"""Names, signatures and documents of methods; records, stacks, one call at a time, reloads."""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Optional, Protocol, Union

import pytest
from integration_test_base import IntegrationTestBase

from isolate import CallTimeoutError, State, WorkerDiedError
from isolate._contracts import _plain

CODE = '''
import asyncio, faulthandler, logging, os, sys, time

log = logging.getLogger("pack.part")

class Extension:
    def __init__(self, host):
        self.host = host
        self.running = self.most = 0
    def mean(self, values: list[float], *, scale: float = 1.0) -> float:
        """Return the mean.

        Values are scaled.
        """
        return scale * sum(values) / len(values)
    def sleep(self): time.sleep(60)
    async def asleep(self): await self.inner()
    async def inner(self): await asyncio.sleep(60)
    def crash(self): faulthandler._sigsegv()
    def log(self):
        log.debug("quiet")
        log.info("two\\nlines")
        log.error("x" * 20_000)
        try: 1 / 0
        except ZeroDivisionError: logging.exception("failed")
        print("y" * 9000)
        print("\\x1eisolate-record [1]", file=sys.stderr)
    def hold(self, path):
        self.busy(0)
        while not os.path.exists(path): time.sleep(0.01)

    def busy(self, seconds=0.2):
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(seconds)
        self.running -= 1
        return self.most
    async def abusy(self):
        return self.busy(0.05)
    def nested(self):
        return self.host.call.caller.back()
'''


class Means(Protocol):
    """A contract in another spelling."""

    def mean(self, values: list[float], *, scale: float = 1.0) -> float:
        """The mean."""
        ...


class TestComfort(IntegrationTestBase):
    """One extension, asked and watched."""

    def test_names_signatures_and_documents(self) -> None:
        """`dir`, `inspect.signature` and `help` show what the extension has."""
        host = self.make_host()
        pack = host.load(self.create_extension("pack", CODE), contract=Means)
        assert {"mean", "log"} <= set(dir(pack.call)) == set(dir(pack.aio))
        assert str(inspect.signature(pack.call.mean)) == "(values: 'list[float]', *, scale: 'float' = ...) -> 'float'"
        assert inspect.getdoc(pack.call.mean) == "Return the mean.\n\nValues are scaled."
        assert pack.call.mean.__name__ == "mean"
        assert pack.within(5).mean([1.0], scale=2.0) == 2.0

    def test_records(self, caplog: pytest.LogCaptureFixture) -> None:
        """Levels and loggers arrive, with tracebacks; long lines are marked as cut; forged records are plain lines."""
        caplog.set_level(logging.INFO, "isolate.pack")
        pack = self.make_host().load(self.create_extension("pack", CODE))
        pack.call.log()
        pack.stop()
        records = {(record.name, record.levelname): record.getMessage() for record in caplog.records}
        assert records["isolate.pack.pack.part", "INFO"] == "two\nlines"
        assert records["isolate.pack.pack.part", "ERROR"].endswith("(cut, 20000 characters)")
        assert "ZeroDivisionError" in records["isolate.pack", "ERROR"]
        assert not [record for record in caplog.records if record.getMessage() == "quiet"]
        lines = [record.getMessage() for record in caplog.records if record.name == "isolate.pack"]
        long = [line for line in lines if line.startswith("y")]
        assert sum(line.count("y") for line in long) == 9000
        assert all(line.endswith("continues)") for line in long[:-1])
        assert "\x1eisolate-record [1]" in lines
        assert "isolate.pack.pack.part" not in logging.root.manager.loggerDict

    def test_stacks(self) -> None:
        """A time-out says where the callee was, a crash in C code as well."""
        pack = self.make_host().load(self.create_extension("pack", CODE, restart={"policy": "never"}))

        def stack(call: Callable[[float], object]) -> str:
            for seconds in (0.3, 3, 30):  # on a busy machine a call may not have begun when its time is over
                with pytest.raises(CallTimeoutError) as caught:
                    call(seconds)
                if notes := getattr(caught.value, "__notes__", []):
                    return str(notes[0])
            return ""

        assert "def sleep(self): time.sleep(60)" in stack(lambda seconds: pack.call(timeout=seconds).sleep())
        found = stack(lambda seconds: asyncio.run(pack.aio(timeout=seconds).asleep()))
        assert "in asleep" in found
        assert "in inner" in found
        with pytest.raises(WorkerDiedError) as died:
            pack.call.crash()
        assert died.value.signal == signal.SIGSEGV
        assert "in crash" in str(died.value)

    def test_serial(self, tmp_path: Path) -> None:
        """A serial extension runs one call at a time; nested calls belong to theirs; cancelled ones do not block."""
        pack = self.make_host().load(self.create_extension("pack", CODE, serial=True))

        async def many() -> list[int]:
            return await asyncio.gather(*(pack.aio.busy(0.01) for _ in range(6)), *(pack.aio.abusy() for _ in range(3)))

        assert set(asyncio.run(many())) == {1}
        slow = threading.Thread(target=lambda: pack.call.hold(str(tmp_path / "end")))
        slow.start()
        self._reaches(lambda: pack.stats()["pending"] == 1)
        with pytest.raises(CallTimeoutError):
            pack.call(timeout=0.1).busy()
        (tmp_path / "end").touch()
        assert pack.call(timeout=60).busy() == 1
        slow.join()
        plain = self.make_host().load(self.create_extension("plain", CODE))
        assert max(asyncio.run(self._together(plain.aio.busy))) > 1

    async def _together(self, call: Callable[[], object]) -> list[int]:
        return await asyncio.gather(*(call() for _ in range(6)))  # type: ignore[call-overload,no-any-return]

    def test_watch(self, caplog: pytest.LogCaptureFixture) -> None:
        """A changed file reloads the extension; one that cannot be loaded leaves the old version."""
        folder = self.create_extension("live", "def value(): return 1")
        live = self.make_host().load(folder)
        live.watch(0.05)
        self._reaches(lambda: live.call.value() == 1)
        (folder / "main.py").write_text("def value(): return 20")
        self._reaches(lambda: live.call.value() == 20)
        (folder / "main.py").write_text("def value(: return 3")
        self._reaches(lambda: any("cannot be loaded" in record.getMessage() for record in caplog.records))
        self._reaches(lambda: (live.call.value(), live.state) == (20, State.READY))
        (folder / "main.py").write_text("def value(): return 4000")
        self._reaches(lambda: live.call.value() == 4000)

    @staticmethod
    def _reaches(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.mark.parametrize(
    "spellings",
    [
        ("Optional[int]", "int | None", "Union[int, None]", "None | int", "typing.Optional[int]", "'int | None'"),
        ("List[Dict[str, int]]", "list[dict[str, int]]", "typing.List[typing.Dict[str,int]]"),
        ("Optional[Union[int, List[str]]]", "int | list[str] | None", "Union[list[str], Optional[int]]"),
        ("Annotated[int, 'note']", "int"),
    ],
)
def test_spellings_of_one_type(spellings: tuple[str, ...]) -> None:
    """Two spellings of one annotation are equal for contracts; other types are not."""
    assert len({_plain(text) for text in spellings}) == 1
    assert _plain(spellings[0]) != _plain("bytes")
    assert _plain(str(Optional[int])) == _plain(str(Union[int, None])) == _plain(str(int | None))  # noqa: UP007,UP045
