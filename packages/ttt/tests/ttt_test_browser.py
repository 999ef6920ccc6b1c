"""Drives an installed Chromium through its debugging pipe, as far as the tests need it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The browser reads commands from descriptor 3 and writes to descriptor 4.
START = "import os, sys; a = sys.argv; os.dup2(int(a[1]), 3); os.dup2(int(a[2]), 4); os.execv(a[3], a[3:])"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def installed() -> str | None:
    """The path of a Chromium on this machine, None if there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab of a headless browser."""

    def __init__(self, reading: int, writing: int) -> None:
        self._in, self._out = os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)
        self._number = 0
        self._session: str | None = None
        self._rest = b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.faults: list[str] = []
        self.send("Runtime.enable")
        self.send("Page.enable")
        self.send("Log.enable")

    def close(self) -> None:
        """Close both pipes."""
        self._in.close()
        self._out.close()

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; note what the page complains about meanwhile."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            got = self._read()
            if got.get("method") == "Runtime.exceptionThrown":
                self.faults.append(json.dumps(got["params"])[:500])
            if got.get("method") == "Log.entryAdded" and got["params"]["entry"]["level"] == "error":
                self.faults.append(got["params"]["entry"]["text"])
            if got.get("id") == self._number:
                assert "error" not in got, got
                result: dict[str, Any] = got["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            got = self._in.read(1 << 20)
            assert got, "the browser has gone"
            self._rest += got
        message, self._rest = self._rest.split(b"\0", 1)
        value: dict[str, Any] = json.loads(message)
        return value

    def run(self, script: str) -> Any:
        """Evaluate JavaScript and return its value."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def go(self, address: str) -> None:
        """Open an address."""
        self.send("Page.navigate", url=address)

    def wait(self, script: str, seconds: float = 40) -> Any:
        """Wait until JavaScript returns something true, and return it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} s: {script}; {self.faults}; {self.run('document.body.innerText')}")

    def click(self, script: str) -> None:
        """Press and release the mouse over the middle of the element that JavaScript returns."""
        measure = "e.scrollIntoView({block: 'center'}); return e.getBoundingClientRect().toJSON()"
        place = self.run(f"(() => {{ const e = {script}; {measure} }})()")
        where = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
        for kind, buttons in (("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 0)):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", buttons=buttons, clickCount=1, **where)

    def size(self, width: int, height: int) -> None:
        """Make the window of this size."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG file."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A headless browser with a profile of its own in a folder."""
    program = installed()
    assert program is not None
    to_browser, from_us = os.pipe()
    from_browser, to_us = os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--disable-dev-shm-usage"]
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            START,
            str(to_browser),
            str(to_us),
            program,
            *options,
            f"--user-data-dir={folder}/profile",
        ],
        pass_fds=(to_browser, to_us),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(to_browser)
    os.close(to_us)
    page = Page(from_browser, from_us)
    try:
        yield page
    finally:
        with contextlib.suppress(Exception):
            page.send("Browser.close")
        page.close()
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            child.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 9)
        child.wait()
