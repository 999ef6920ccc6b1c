"""The fleet's one address: plugins before and behind the workers, and another try for what a worker fails to answer."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections import Counter
from contextlib import closing, suppress
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import isolate
import xfer

PATIENCE, TRIES = 3.0, 4
"""Seconds for a worker's answer before the next try, which another worker takes, and how many there are."""
KINDS = {502: "plugin_error", 503: "server_error"}
"""The type of an error object of the protocol by its status, where it is no `invalid_request_error`."""


class Gateway:
    """Answers completions. A request has a prompt, or a photo: the handle of an array in shared memory.

    Args:
        workers: The port of the workers.
        host: Has loaded the plugins `counter` and `painter`.
    """

    def __init__(self, workers: int, host: isolate.Host) -> None:
        self._workers, self._host, self.bytes = workers, host, Counter[str]()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        application = Starlette(
            routes=[Route("/v1/completions", self.complete, methods=["POST"])],
            exception_handlers={HTTPException: error_object},
        )
        config = uvicorn.Config(application, loop="asyncio", log_level="critical", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listening],))
        self._thread.start()

    def close(self) -> None:
        """Answer what has come and stop."""
        self._server.should_exit = True
        self._thread.join()
        self._listening.close()

    async def complete(self, request: Request) -> JSONResponse:
        """Answer one request."""
        try:
            body = await request.json()
            if body.get("stream"):
                raise ValueError("got stream=true; this address answers whole texts")
            photo = xfer.Handle.from_bytes(bytes.fromhex(body.pop("photo"))) if "photo" in body else None
        except (xfer.XferError, AttributeError, RecursionError, TypeError, ValueError) as error:
            raise HTTPException(400, f"{type(error).__name__}: {error}") from error
        if photo is None:
            return JSONResponse(*await self._ask(body))
        body["prompt"] = await self._plugin(str, "counter", "question", photo)
        answer, status = await self._ask(body)
        if status == HTTPStatus.OK:
            picture = await self._plugin(xfer.Handle, "painter", "picture", answer["choices"][0]["text"])
            answer["picture"] = bytes(picture).hex()
            self.bytes["arrays"] += photo.nbytes + picture.nbytes
            self.bytes["handles"] += len(bytes(photo)) + len(bytes(picture))
        return JSONResponse(answer, status)

    async def _plugin(self, wanted: type, name: str, method: str, argument: object) -> Any:
        """Call a plugin's method within five seconds and check the type of its result."""
        try:
            result = await getattr(self._host[name].aio(timeout=5), method)(argument)
        except Exception as error:  # a plugin may raise anything
            raise HTTPException(502, f"{name}: {type(error).__name__}: {error}"[:500]) from error
        if not isinstance(result, wanted):
            raise HTTPException(502, f"{name}: {method} returned {type(result).__name__}, wanted {wanted.__name__}")
        return result

    async def _ask(self, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Ask the workers. One that dies or is silent takes no new connection, so the next try reaches another one."""
        for number in range(TRIES):
            await asyncio.sleep(0.2 * number)
            with suppress(OSError, http.client.HTTPException, ValueError):
                return await asyncio.to_thread(post, self._workers, body, PATIENCE)
        raise HTTPException(503, f"the workers did not answer {TRIES} times")


def post(port: int, body: dict[str, Any], timeout: float) -> tuple[dict[str, Any], int]:
    """Ask for a completion and return the answer and its status.

    Raises:
        OSError: The server died, or was silent for too long.
    """
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return json.loads(answer.read()), answer.status


async def error_object(_: Request, error: Any) -> JSONResponse:
    """Say what went wrong as the protocol does."""
    kind = KINDS.get(error.status_code, "invalid_request_error")
    said = {"message": error.detail, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": said}, error.status_code)
