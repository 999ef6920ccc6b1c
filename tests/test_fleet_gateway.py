"""The fleet's gateway alone: requests that are none, and workers that are not there."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs ternary's extra serve")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fleet needs Linux")


@pytest.fixture
def port(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """The port of a gateway whose workers' port answers nothing, and whose host has no plugin."""
    monkeypatch.syspath_prepend(root / "examples" / "fleet")
    import gateway

    import isolate

    monkeypatch.setattr(gateway, "TRIES", 1)
    with socket.socket() as nobody, isolate.Host(tmp_path) as host:
        nobody.bind(("127.0.0.1", 0))  # it does not listen, so each connection to it is refused
        with closing(gateway.Gateway(nobody.getsockname()[1], host)) as answering:
            yield answering.port


def ask(port: int, body: bytes, path: str = "/v1/completions") -> tuple[int, dict[str, Any]]:
    """Send a body; return the status and the error object."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        error: dict[str, Any] = json.loads(answer.read())["error"]
        return answer.status, error


def test_wrong_requests_are_answered_400(port: int) -> None:
    """Whatever is no request gets an error object that says why; the gateway answers on."""
    bodies = [b"", b"{", b"\xff", b"7", b"null", b"[]", b'"a photo"', b'["photo"]', b"[" * 100_000]
    bodies += [b'{"photo": 1}', b'{"photo": "zz"}', b'{"photo": "00"}', b'{"prompt": "a", "stream": true}']
    for body in bodies:
        status, error = ask(port, body)
        assert (status, error["type"]) == (400, "invalid_request_error"), (body[:20], error)
        assert error["message"]
    assert ask(port, b"{}", "/elsewhere")[0] == 404


def test_plugins_and_workers_that_fail_have_types_of_their_own(port: int) -> None:
    """A plugin that is not there is a plugin's error. Workers that do not answer are the server's."""
    import xfer

    with xfer.Pool("1MiB") as pool:
        photo = bytes(pool.put(bytearray(64))).hex()
        status, error = ask(port, json.dumps({"photo": photo}).encode())
    assert (status, error["type"]) == (502, "plugin_error"), error
    assert error["message"].startswith("counter: ")
    status, error = ask(port, b'{"prompt": "Anna has two ."}')
    assert (status, error["type"]) == (503, "server_error"), error
