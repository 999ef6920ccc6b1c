"""The fleet's one address: plugins before and behind the workers, and another try for what a worker fails to answer."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import isolate
import xfer

PATIENCE, TRIES = 3.0, 4
"""Seconds for a worker's answer before the next try, which another worker takes, and how many there are."""
STATUS = {"invalid_request_error": 400, "rate_limit_error": 429, "plugin_error": 502, "server_error": 503}
"""The status of an answer that is an error object of the protocol, by its type."""


class BusyError(Exception):
    """No worker answered."""


class PluginError(Exception):
    """A plugin failed, or returned something else than what was asked for."""


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
        application = Starlette(routes=[Route("/v1/completions", self.complete, methods=["POST"])])
        self._server = uvicorn.Server(uvicorn.Config(application, log_level="critical", timeout_graceful_shutdown=2))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._listening])))
        self._thread.start()

    def close(self) -> None:
        """Answer what has come and stop."""
        self._server.should_exit = True
        self._thread.join()
        self._listening.close()

    async def complete(self, request: Request) -> JSONResponse:
        """Answer one request, or say by the protocol's error object what went wrong."""
        try:
            answer = await self._answer(json.loads(await request.body()))
        except PluginError as error:
            answer = _error("plugin_error", error)
        except BusyError as error:
            answer = _error("server_error", error)
        except (xfer.XferError, KeyError, TypeError, ValueError, IndexError) as error:
            answer = _error("invalid_request_error", error)
        return JSONResponse(answer, STATUS.get(answer["error"]["type"], 400) if "error" in answer else 200)

    async def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        if "photo" not in body:
            return await self._ask(body)
        photo = xfer.Handle.from_bytes(bytes.fromhex(body.pop("photo")))
        body["prompt"] = await self._plugin(str, "counter", "question", photo)
        answer = await self._ask(body)
        if "error" not in answer:
            picture = await self._plugin(xfer.Handle, "painter", "picture", answer["choices"][0]["text"])
            answer["picture"] = bytes(picture).hex()
            self.bytes["arrays"] += photo.nbytes + picture.nbytes
            self.bytes["handles"] += len(bytes(photo)) + len(bytes(picture))
        return answer

    async def _plugin(self, wanted: type, name: str, method: str, argument: object) -> Any:
        """Call a plugin's method within five seconds and check the type of its result."""
        try:
            result = await getattr(self._host[name].aio(timeout=5), method)(argument)
        except Exception as error:  # a plugin may raise anything
            raise PluginError(f"{name}: {type(error).__name__}: {error}") from error
        if not isinstance(result, wanted):
            raise PluginError(f"{name}: {method} returned {type(result).__name__}, wanted {wanted.__name__}")
        return result

    async def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ask the workers. One that dies or is silent takes no new connection, so the next try reaches another one."""
        for number in range(TRIES):
            await asyncio.sleep(0.2 * number)
            with suppress(OSError, http.client.HTTPException, ValueError):
                return await asyncio.to_thread(post, self._workers, body, PATIENCE)
        raise BusyError(f"the workers did not answer {TRIES} times")


def post(port: int, body: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Ask for a completion and return the answer.

    Raises:
        OSError: The server died, or was silent for too long.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


def _error(kind: str, error: Exception) -> dict[str, Any]:
    message = f"{type(error).__name__}: {error}"[:500]
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
