"""An HTTP server with the protocol of OpenAI: chat and text completions, streaming, models, health, metrics."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Lifespan, Receive, Scope, Send

from ternary.errors import ChatTemplateError, ContextLengthError, ServerBusyError, TernaryError
from ternary.llm._batching import Event, Request, RetiredError
from ternary.llm._model import Model
from ternary.llm._sampling import Sampling
from ternary.llm._sequence import check_prompt
from ternary.llm._versions import Version, Versions

__all__ = ["application"]

MOST_BYTES = 4 << 20
"""Longest body of a request."""
BODY_SECONDS = 30.0
"""Time in which a client sends the body of its request."""
MOST_STOPS, LONGEST_STOP = 16, 1000
"""Stop texts of a request, and characters of one: each token's text is searched for all of them."""
MOST_WORDS = 1000
"""Characters of an error's message, which may repeat what the client sent."""
_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
"""What the protocol has and this server does not, with the values that ask for nothing."""


class _BadRequestError(Exception):
    def __init__(self, message: str, parameter: str | None = None, status: int = 400):
        super().__init__(message)
        self.parameter, self.status = parameter, status


class _Stream(StreamingResponse):
    """A stream that calls something at its end, also where its client has left before its first piece."""

    def __init__(self, pieces: AsyncIterator[str], at_end: Callable[[], None]):
        super().__init__(pieces, media_type="text/event-stream")
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._at_end()


def application(versions: Versions, *, lifespan: Lifespan[Any] | None = None) -> Starlette:
    """Return the ASGI application that serves a model.

    Args:
        versions: The open model, and its newer versions.
        lifespan: Begins and ends with the application.
    """
    server = _Server(versions)
    made = Starlette(
        lifespan=lifespan,
        routes=[
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
            Route("/v1/completions", server.complete, methods=["POST"]),
            Route("/v1/models", server.models),
            Route("/v1/models/{name:path}", server.models),
            Route("/health", server.health),
            Route("/metrics", server.metrics),
        ],
        exception_handlers={HTTPException: _http_error},
    )
    made.state.status = versions.status
    return made


def _error(status: int, message: str, kind: str, parameter: str | None = None) -> JSONResponse:
    message = message if len(message) <= MOST_WORDS else message[:MOST_WORDS] + " …"
    message = message.encode("utf-8", "backslashreplace").decode("utf-8")  # it may repeat half of a surrogate pair
    body = {"error": {"message": message, "type": kind, "param": parameter, "code": None}}
    return JSONResponse(body, status, headers={"retry-after": "1"} if status == 429 else None)


async def _http_error(_: HttpRequest, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error(status, str(error.detail if isinstance(error, HTTPException) else error), "invalid_request_error")


class _Server:
    def __init__(self, versions: Versions):
        self._versions = versions
        self._started = int(time.time())
        self._looking: asyncio.Future[Version] | None = None

    async def health(self, _: HttpRequest) -> Response:
        """Say that the server is up, and what it does. A server that is idle finds out here that a version is new."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().run_in_executor(None, self._versions.newest)
        return JSONResponse(self._versions.status())

    async def models(self, request: HttpRequest) -> Response:
        """List the one model."""
        name = self._versions.current.name
        entry = {"id": name, "object": "model", "created": self._started, "owned_by": "ternary"}
        wanted = request.path_params.get("name")
        if wanted is None:
            return JSONResponse({"object": "list", "data": [entry]})
        if wanted != name:
            return _error(404, f"there is no model {wanted!r}; this server has {name!r}", "not_found_error")
        return JSONResponse(entry)

    async def metrics(self, _: HttpRequest) -> Response:
        """Return the counters as Prometheus reads them."""
        counters, status = asdict(self._versions.counters()), self._versions.status()
        counters["versions_refused"] = self._versions.refused
        lines = []
        for field, value in counters.items():
            lines += [f"# TYPE ternary_{field}_total counter", f"ternary_{field}_total {value}"]
        for field in ("running", "waiting"):
            lines += [f"# TYPE ternary_requests_{field} gauge", f"ternary_requests_{field} {status[field]}"]
        labels = ",".join(
            f"{key}={json.dumps(status.get(key, ''), ensure_ascii=False)}" for key in ("model", "version")
        )
        lines += ["# TYPE ternary_model_info gauge", f"ternary_model_info{{{labels}}} 1"]
        return PlainTextResponse("\n".join(lines) + "\n")

    async def chat(self, request: HttpRequest) -> Response:
        """Answer a conversation."""
        return await self._answer(request, chat=True)

    async def complete(self, request: HttpRequest) -> Response:
        """Continue a text."""
        return await self._answer(request, chat=False)

    async def _answer(self, http: HttpRequest, *, chat: bool) -> Response:
        try:
            body = await _body(http)
            loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

            def deliver(event: Event) -> None:
                loop.call_soon_threadsafe(events.put_nowait, event)

            while True:
                version, request = await asyncio.to_thread(self._prepare, body, chat, deliver)
                try:
                    version.scheduler.submit(request)
                    break
                except RetiredError:  # a newer version has come meanwhile
                    continue
        except _BadRequestError as e:
            return _error(e.status, str(e), "invalid_request_error", e.parameter)
        except ServerBusyError as e:
            return _error(429, str(e), "rate_limit_error")
        except (ChatTemplateError, ContextLengthError, ValueError) as e:
            return _error(400, str(e), "invalid_request_error")
        except ClientDisconnect:
            return Response(status_code=499)
        answer = _Answer(version, request, chat=chat)
        if body.get("stream"):
            usage = (body.get("stream_options") or {}).get("include_usage") is True
            return _Stream(answer.stream(events, usage), request.cancel)
        return await answer.whole(events, http)

    def _prepare(self, body: dict[str, Any], chat: bool, deliver: Callable[[Event], None]) -> tuple[Version, Request]:
        """Make a request to the newest version; from its prompt on, nothing of it belongs to another one."""
        version = self._versions.newest()
        prompt = _prompt(version.model, body, chat)
        check_prompt(prompt, version.model.context, version.model.config.vocabulary)
        return version, Request(prompt, _sampling(version.model, body), deliver)


def _prompt(model: Model, body: dict[str, Any], chat: bool) -> list[int]:
    given = body.get("messages" if chat else "prompt")
    if chat:
        if not isinstance(given, list) or not given or not all(isinstance(m, dict) for m in given):
            raise _BadRequestError("'messages' is a list of objects with role and content", "messages")
        return model.encode([{**m, "content": _text_of(m.get("content"))} for m in given])
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str):
        given = given[0]
    if isinstance(given, str) and given:
        return model.encode(given)
    if isinstance(given, list) and given and all(type(t) is int for t in given):
        return model.encode(given)
    raise _BadRequestError("'prompt' is one text that is not empty, or a list of tokens", "prompt")


def _sampling(model: Model, body: dict[str, Any]) -> Sampling:
    for name, neutral in _UNSUPPORTED.items():
        value = body.get(name)
        if value is not None and not any(value == v and type(value) in (type(v), float) for v in neutral):
            raise _BadRequestError(f"{name!r} is not supported", name)
    for name, kind in (("stream", bool), ("stream_options", dict)):
        if not isinstance(body.get(name), kind | None):
            raise _BadRequestError(f"got {name}={body[name]!r}; wanted a {kind.__name__}", name)
    options = {name: body.get(name) for name in _OPTIONS}
    options["stop"] = _stops(body)
    for name, value in options.items():
        if name != "stop" and value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise _BadRequestError(f"got {name}={value!r}; wanted a number", name)
    tokens = body.get("max_completion_tokens")
    tokens = body.get("max_tokens") if tokens is None else tokens
    if tokens is not None and (type(tokens) is not int or tokens < 0):
        raise _BadRequestError(f"got max_tokens={tokens!r}; wanted a whole number", "max_tokens")
    return model.sampling(max_tokens=tokens, **options)


def _stops(body: dict[str, Any]) -> list[str]:
    given = body.get("stop")
    stops = [given] if isinstance(given, str) else [] if given is None else given
    whole = isinstance(stops, list) and all(isinstance(text, str) and 0 < len(text) <= LONGEST_STOP for text in stops)
    if not whole or len(stops) > MOST_STOPS:
        wanted = f"up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters"
        raise _BadRequestError(f"'stop' has a wrong type or size; wanted a text or a list of {wanted}", "stop")
    return stops


async def _body(http: HttpRequest) -> dict[str, Any]:
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in http.stream():
                data += part
                if len(data) > MOST_BYTES:
                    raise _BadRequestError(f"the request has more than {MOST_BYTES} bytes")
    except TimeoutError:
        raise _BadRequestError(f"the request did not come within {BODY_SECONDS:g} seconds", status=408) from None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise _BadRequestError(f"the request is no JSON: {e}") from None
    if not isinstance(found, dict):
        raise _BadRequestError("the request is no JSON object")
    return found


def _text_of(content: Any) -> str:
    """Return the text of a message, which may come in parts."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    raise _BadRequestError("a message's content is a text, or a list of parts of type text", "messages")


class _Answer:
    """The objects of the protocol for one request."""

    def __init__(self, version: Version, request: Request, *, chat: bool):
        self._request, self._chat = request, chat
        self._base = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": version.name,
            "system_fingerprint": version.label,
        }

    def _usage(self) -> dict[str, Any]:
        prompt, made = len(self._request.prompt), self._request.generated
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": self._request.reused},
        }

    async def whole(self, events: asyncio.Queue[Event], http: HttpRequest) -> Response:
        """Wait for the end and answer at once; a client that leaves cancels the request."""
        text: list[str] = []
        try:
            while True:
                try:
                    event = await asyncio.wait_for(events.get(), 1.0)
                except TimeoutError:
                    if await http.is_disconnected():
                        return Response(status_code=499)
                    continue
                if event.error is not None:
                    return _failure(event.error)
                text.append(event.text)
                if event.finish is not None:
                    break
        finally:
            self._request.cancel()
        content = "".join(text)
        choice: dict[str, Any] = {"index": 0, "finish_reason": event.finish, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": content}} if self._chat else {"text": content}
        kind = "chat.completion" if self._chat else "text_completion"
        return JSONResponse({**self._base, "object": kind, "choices": [choice], "usage": self._usage()})

    async def stream(self, events: asyncio.Queue[Event], usage: bool) -> AsyncIterator[str]:
        """Send pieces as they come; a client that leaves closes this generator and so cancels the request."""
        try:
            if self._chat:
                yield self._chunk({"delta": {"role": "assistant", "content": ""}}, None)
            while True:
                event = await events.get()
                if event.error is not None:
                    yield f"data: {bytes(_failure(event.error).body).decode()}\n\n"
                    return
                if event.text:
                    yield self._chunk({"delta": {"content": event.text}} if self._chat else {"text": event.text}, None)
                if event.finish is not None:
                    yield self._chunk({"delta": {}} if self._chat else {"text": ""}, event.finish)
                    break
            if usage:
                yield self._line({"choices": [], "usage": self._usage()})
            yield "data: [DONE]\n\n"
        finally:
            self._request.cancel()

    def _chunk(self, content: dict[str, Any], finish: str | None) -> str:
        return self._line({"choices": [{"index": 0, "finish_reason": finish, "logprobs": None, **content}]})

    def _line(self, rest: dict[str, Any]) -> str:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return f"data: {json.dumps({**self._base, 'object': kind, **rest})}\n\n"


def _failure(error: Exception) -> JSONResponse:
    if isinstance(error, (ContextLengthError, ChatTemplateError)):
        return _error(400, str(error), "invalid_request_error")
    if isinstance(error, MemoryError):
        return _error(503, "the server has no memory for this request; try again later", "server_error")
    known = isinstance(error, TernaryError | ValueError)
    return _error(500, str(error) if known else "the decoder failed", "server_error")
