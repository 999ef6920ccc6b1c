"""Many requests in one decoder: each step runs a row of every sequence that generates, and pieces of new prompts."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ternary.errors import ServerBusyError
from ternary.llm._cache import Cache, Row
from ternary.llm._model import Model
from ternary.llm._sampling import Sampling
from ternary.llm._sequence import Finish, Sequence, shared_beginning
from ternary.llm._tokenizer import StopFinder, TextStream

__all__ = ["Counters", "Event", "Request", "RetiredError", "Scheduler"]

STEP_TOKENS = 128
"""Rows of a step at most: those of new prompts wait so long that running texts go on."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a step brought for a request: a piece of text, or its end, or the error that ended it."""

    text: str = ""
    finish: Finish | None = None
    error: Exception | None = None


@dataclass(eq=False, slots=True)
class Request:
    """A text to generate; `deliver` is called with each event on the scheduler's thread.

    Attributes:
        prompt: Tokens to start from.
        sampling: How to choose the next ones.
        deliver: Receives the events.
        generated: How many tokens were generated.
        cancelled: Set by `cancel`; the request then ends at the next step.
    """

    prompt: list[int]
    sampling: Sampling
    deliver: Callable[[Event], None]
    generated: int = 0
    reused: int = 0
    cancelled: bool = False
    began: float = field(default_factory=time.perf_counter)

    def cancel(self) -> None:
        """End the request at the next step, because its client has left."""
        self.cancelled = True


@dataclass(slots=True)
class Counters:
    """What a server has done since its start."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    rejected: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    busy_seconds: float = 0.0


class RetiredError(ServerBusyError):
    """A newer version of the model has taken the scheduler's place; submit the request there."""


@dataclass(eq=False, slots=True)
class _Active:
    request: Request
    sequence: Sequence
    stream: TextStream
    stops: StopFinder


class Scheduler:
    """Runs requests side by side on a thread of its own.

    Args:
        model: The open model.
        parallel: How many sequences run at once; each has a cache of the model's context.
        queue: How many more requests may wait.

    Raises:
        ModelTooLargeError: So many caches do not fit into the memory that this process may use.
    """

    def __init__(self, model: Model, *, parallel: int = 8, queue: int = 64):
        if parallel < 1 or queue < 0:
            raise ValueError(f"got parallel={parallel}, queue={queue}; wanted at least 1 and 0")
        model.check_memory(parallel)
        self._model, self._parallel, self._most_waiting = model, parallel, queue
        self.counters = Counters()
        self._waiting: deque[Request] = deque()
        self._active: list[_Active] = []
        self._idle: list[tuple[Cache, list[int]]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._then: Callable[[], object] | None = None  # called at the end of a scheduler that is retired
        self._thread = threading.Thread(target=self._loop, name="ternary-scheduler", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """How many requests run and how many wait."""
        with self._changed:
            return len(self._active), len(self._waiting)

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ServerBusyError: The queue is full, or the scheduler closes.
            RetiredError: It takes no more requests.
        """
        with self._changed:
            if self._then is not None:
                raise RetiredError("a newer version answers now")
            if self._closing or len(self._waiting) >= self._most_waiting + self._parallel - len(self._active):
                self.counters.rejected += 1
                why = "the server closes" if self._closing else f"{len(self._waiting)} requests wait already"
                raise ServerBusyError(f"{why}; try again later")
            self.counters.requests += 1
            self._waiting.append(request)
            self._changed.notify()

    def retire(self, then: Callable[[], object]) -> None:
        """Take no more requests, and end the thread when the last one has ended.

        Args:
            then: Called on the thread at its end.
        """
        with self._changed:
            self._then = then
            self._changed.notify()

    def close(self) -> None:
        """End all requests and the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while self._wait():
            self._admit()
            self._step()
        with self._changed:
            ended = [*self._waiting, *(active.request for active in self._active)]
            self._waiting.clear()
            self._active.clear()
        for request in ended:
            self._end(request, Event(finish="cancelled"))
        self._idle.clear()
        if self._then is not None:
            self._then()

    def _wait(self) -> bool:
        """Wait until there is something to run; return whether there will be."""
        with self._changed:
            while not (self._closing or self._waiting or self._active):
                if self._then is not None:
                    return False
                self._changed.wait()
            return not self._closing

    def _admit(self) -> None:
        """Give waiting requests a cache, the one that shares most of their beginning."""
        while len(self._active) < self._parallel:
            with self._changed:
                if not self._waiting:
                    return
                request = self._waiting.popleft()
            if request.cancelled:
                self._end(request, Event(finish="cancelled"))
                continue
            try:
                cache, cached = self._best_cache(request.prompt)
            except Exception as e:  # such as no memory for a cache
                self._end(request, Event(error=e))
                continue
            try:
                sequence = Sequence(
                    self._model.engine, cache, cached, request.prompt, request.sampling, self._model.ends
                )
                active = _Active(request, sequence, self._model.tokenizer.stream(), StopFinder(request.sampling.stop))
            except Exception as e:
                self._idle.append((cache, cached))
                self._end(request, Event(error=e))
                continue
            request.reused = sequence.reused
            self.counters.prompt_tokens += sequence.prompt_tokens
            self.counters.reused_tokens += sequence.reused
            with self._changed:
                self._active.append(active)
            if sequence.finish is not None:
                self._leave(active, Event(finish=sequence.finish))

    def _best_cache(self, prompt: list[int]) -> tuple[Cache, list[int]]:
        if len(self._idle) + len(self._active) < self._parallel and not any(
            shared_beginning(cached, prompt) > len(cached) // 2 for _, cached in self._idle
        ):
            try:
                return self._model.engine.new_cache(self._model.context), []
            except MemoryError:
                if not self._idle:
                    raise
        best = max(range(len(self._idle)), key=lambda i: shared_beginning(self._idle[i][1], prompt))
        return self._idle.pop(best)

    def _step(self) -> None:
        rows: list[Row] = []
        parts: list[tuple[_Active, list[Row]]] = []
        # Running texts first, one row each; then new prompts as far as the step has room.
        for active in sorted(self._active, key=lambda a: not a.request.generated):
            if active.request.cancelled:
                self._leave(active, Event(finish="cancelled"))
                continue
            part = active.sequence.rows(max(1, STEP_TOKENS - len(rows)) if len(rows) < STEP_TOKENS else 0)
            if part:
                rows += part
                parts.append((active, part))
        if not rows:
            return
        begin = time.perf_counter()
        try:
            logits = self._model.engine.run(rows)
        except Exception as e:
            for active, _ in parts:
                active.sequence.forget()
                self._leave(active, Event(error=e))
            return
        self.counters.busy_seconds += time.perf_counter() - begin
        self.counters.steps += 1
        at = 0
        for active, part in parts:
            active.sequence.ran(part)
            if part[-1].logits:
                self._accept(active, logits[at])
                at += 1

    def _accept(self, active: _Active, logits: object) -> None:
        request, sequence = active.request, active.sequence
        try:
            token = sequence.accept(logits)  # type: ignore[arg-type] # a row of the logits' matrix
            shown, found = ("", False) if token is None else active.stops.add(active.stream.add(token))
        except Exception as e:
            self._leave(active, Event(error=e))
            return
        if token is not None:
            request.generated += 1
            self.counters.generated_tokens += 1
        finish: Finish | None = "stop" if found else sequence.finish
        if finish is not None and not found:
            last, found = active.stops.add(active.stream.rest())
            shown += last if found else last + active.stops.rest()
        if finish is not None:
            self._leave(active, Event(shown, finish))
        elif shown:
            _deliver(request, Event(shown))

    def _leave(self, active: _Active, event: Event) -> None:
        with self._changed:
            self._active.remove(active)
        self._idle.append((active.sequence.cache, active.sequence.cached))
        self._end(active.request, event)

    def _end(self, request: Request, event: Event) -> None:
        counters = self.counters
        if event.error is not None:
            counters.failed += 1
        elif event.finish == "cancelled":
            counters.cancelled += 1
        else:
            counters.finished += 1
        _deliver(request, event)


def _deliver(request: Request, event: Event) -> None:
    """Pass an event on; a receiver that is gone ends its request and no other."""
    try:
        request.deliver(event)
    except RuntimeError:  # the receiver's event loop is closed
        request.cancel()
