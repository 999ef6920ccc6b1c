"""The fleet's one address: plugins before and behind the workers, and another worker for what one fails to answer."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections import Counter
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from supervisor import Supervisor

import isolate
import xfer

PATIENCE = 3.0
"""Seconds for a worker's answer; then another worker is asked."""
TRIES = 4


class BusyError(Exception):
    """No worker answered."""


class PluginError(Exception):
    """A plugin failed, or returned something else than what was asked for."""


class Gateway:
    """Answers completions. A request has a prompt, or a photo: the handle of an array in shared memory.

    Args:
        supervisor: Knows the workers.
        host: Has loaded the plugins `counter` and `painter`.
    """

    def __init__(self, supervisor: Supervisor, host: isolate.Host) -> None:
        self._supervisor, self._host = supervisor, host
        self.bytes = Counter[str]()
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
            body = json.loads(await request.body())
            answer = await self._answer(body)
        except PluginError as error:
            return _error(502, "plugin_error", error)
        except BusyError as error:
            return _error(503, "server_error", error)
        except (xfer.XferError, KeyError, TypeError, ValueError, IndexError) as error:
            return _error(400, "invalid_request_error", error)
        status = (
            {"rate_limit_error": 429, "server_error": 500}.get(answer["error"]["type"], 400)
            if "error" in answer
            else 200
        )
        return JSONResponse(answer, status)

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
        """Ask the worker with the fewest open requests; ask another one if it dies or is silent."""
        asked: list[Any] = []
        for _ in range(TRIES):
            ready = [worker for worker in self._supervisor.workers if worker.port and worker not in asked]
            if not ready:
                await asyncio.sleep(0.5)
                continue
            worker = min(ready, key=lambda worker: worker.open)
            asked.append(worker)
            worker.open += 1
            try:
                return await asyncio.to_thread(post, worker.port, body, PATIENCE)
            except (OSError, http.client.HTTPException, ValueError):
                continue
            finally:
                worker.open -= 1
        raise BusyError(f"none of {len(asked)} workers answered in time")


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


def _error(status: int, kind: str, error: Exception) -> JSONResponse:
    message = f"{type(error).__name__}: {error}"[:500]
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)
