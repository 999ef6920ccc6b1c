"""A language model that is open: text in, text out; logits for research."""

from __future__ import annotations

from collections.abc import Generator as PyGenerator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ternary._limits import check_memory
from ternary.errors import ChatTemplateError, ContextLengthError, ModelFileError
from ternary.llm._cache import Cache, Row, bytes_a_position
from ternary.llm._config import ModelConfig
from ternary.llm._engine import Engine, open_engine
from ternary.llm._forklock import ForkLock
from ternary.llm._modelfile import ModelFile
from ternary.llm._sampling import Sampling
from ternary.llm._sequence import Finish, shared_beginning
from ternary.llm._sequence import Sequence as Running
from ternary.llm._tokenizer import StopFinder, Tokenizer

__all__ = ["Generation", "Model"]

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]

BATCH = 128
"""Tokens of a prompt that run in one step."""


class Model:
    """A ternary language model that is open for use.

    Make one with `ternary.llm.load`. Threads may share it: their steps take turns.

    Args:
        file: The open model file.
        kernel: "auto" for the fastest kernel of this machine, or a name from `ternary.runtime.available_kernels()`.
        threads: Threads of a step, 0 for one per processor.
        cache_bits: Bits of the keys and values that are kept, 8 or 16.
        context: Longest sequence in tokens, prompt included; the memory for it is used as it fills.

    Example:
        >>> import tempfile
        >>> from ternary import llm
        >>> config = llm.ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32)
        >>> llm.save(llm.Decoder(config, ternary=True), path := tempfile.mkdtemp() + "/m.ternary")
        >>> model = llm.load(path)
        >>> model.context, model.config.layers
        (32, 1)
    """

    def __init__(
        self, file: ModelFile, *, kernel: str = "auto", threads: int = 0, cache_bits: int = 16, context: int = 0
    ):
        if context < 0 or threads < 0:
            raise ValueError(f"got context={context}, threads={threads}; wanted 0 or more")
        self._file = file
        self.context: int = min(context or min(file.config.context, 4096), file.config.context)
        self._engine = open_engine(file, kernel=kernel, threads=threads, cache_bits=cache_bits, positions=self.context)
        self._cache_bits = cache_bits
        self.check_memory(1)
        text = file.tokenizer()
        given = {**file.metadata, "bos": file.config.bos}
        self._tokenizer = Tokenizer(text, given) if text is not None else None
        self._ends = frozenset(file.metadata.get("stop_tokens", file.config.eos))
        if self._tokenizer is not None:
            self._ends |= self._tokenizer.ends()
        try:
            self.sampling()
        except (TypeError, ValueError) as e:
            raise ModelFileError(f"{file.path}: its settings for generation are damaged: {e}") from None
        self._lock = ForkLock()
        self._idle: tuple[Cache, list[int]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the weights, the caches and the mapped file. A step that runs ends first; later ones fail.

        A closed model raises `ModelClosedError`. Memory that other objects still refer to, such as a running
        `Generation`, is freed with them.
        """
        with self._lock:
            self._idle = None
            self._engine.close()
            self._file = self._file.without_tensors()

    def check_memory(self, sequences: int) -> None:
        """Refuse to run so many sequences at once if their caches and the weights exceed this process's memory.

        Args:
            sequences: How many; each has a cache of the whole context.

        Raises:
            ModelTooLargeError: They do.
        """
        weights = sum(tensor.nbytes for tensor in self._file.tensors.values())
        cache = sequences * self.context * bytes_a_position(self.config, self._cache_bits)
        check_memory(
            weights + cache,
            f"the model ({weights:,} bytes) does not fit with caches for {sequences} x {self.context} tokens "
            f"({cache:,} bytes)",
            ", or give a smaller context, cache_bits=8 or fewer parallel requests",
        )

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self._file.config

    @property
    def file(self) -> ModelFile:
        """The open model file; without its weights once the model is closed."""
        return self._file

    @property
    def engine(self) -> Engine:
        """The decoder, for a scheduler that runs several sequences in a step."""
        return self._engine

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a text."""
        return self._ends

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            ChatTemplateError: The model file has none.
        """
        if self._tokenizer is None:
            raise ChatTemplateError("the model file has no tokenizer; give tokens instead of a text")
        return self._tokenizer

    def sampling(self, **options: Any) -> Sampling:
        """Return options for generation on top of the model's own defaults.

        Args:
            **options: Fields of `Sampling`; None stands for the default.
        """
        own = dict(self._file.metadata.get("generation", {}))
        if not own.pop("do_sample", bool(own.get("temperature"))):
            own.pop("temperature", None)
        known = Sampling.__dataclass_fields__
        merged = {k: v for k, v in own.items() if k in known and v} | {
            k: v for k, v in options.items() if v is not None
        }
        if "stop" in merged:
            merged["stop"] = (merged["stop"],) if isinstance(merged["stop"], str) else tuple(merged["stop"])
        return Sampling(**merged)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a prompt: a text, messages of a chat, or tokens themselves."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        messages = [part for part in prompt if isinstance(part, Mapping)]
        if messages:
            return self.tokenizer.chat(messages)
        return [int(token) for token in prompt if not isinstance(token, Mapping)]

    def generate(self, prompt: Prompt, sampling: Sampling | None = None, **options: Any) -> Generation:
        """Generate text; iterate over the result to receive it piece by piece.

        Args:
            prompt: A text to continue, or messages such as `{"role": "user", "content": "…"}`, or tokens.
            sampling: How tokens are chosen; by default the model's own settings with `options`.
            **options: Fields of `Sampling`, such as `temperature=0.7` or `max_tokens=100`.

        Returns:
            An iterator over pieces of text, with `tokens`, `prompt_tokens` and `finish`.

        Raises:
            ContextLengthError: The prompt does not fit the context.
            ChatTemplateError: The model has no tokenizer or template for this kind of prompt.
        """
        chosen = self.sampling(**options) if sampling is None else sampling
        return Generation(self, self.encode(prompt), chosen)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits behind each of the tokens.

        Args:
            ids: Tokens of one sequence.

        Returns:
            float32 of shape (tokens, vocabulary).

        Raises:
            ContextLengthError: There are more tokens than the context holds.
        """
        if len(ids) > self.context:
            raise ContextLengthError(f"got {len(ids)} tokens for a context of {self.context}")
        if any(not 0 <= t < self.config.vocabulary for t in ids):
            raise ValueError(f"got a token outside 0 … {self.config.vocabulary - 1}")
        cache = self._engine.new_cache(max(1, len(ids)))
        out = np.empty((len(ids), self.config.vocabulary), np.float32)
        for first in range(0, len(ids), BATCH):
            rows = [Row(int(t), first + i, cache, True) for i, t in enumerate(ids[first : first + BATCH])]
            out[first : first + len(rows)] = self._engine.run(rows)
        return out

    def take_cache(self, prompt: Sequence[int]) -> tuple[Cache, list[int]]:
        """Return a cache for a sequence and the tokens it holds: the idle one if it shares a beginning or none runs."""
        with self._lock:
            idle, self._idle = self._idle, None
        if idle is not None and (shared_beginning(idle[1], prompt) or not idle[1]):
            return idle
        return (idle[0], []) if idle is not None else (self._engine.new_cache(self.context), [])

    def give_back(self, cache: Cache, tokens: list[int]) -> None:
        """Keep the cache of a sequence that has ended, for one that begins alike."""
        with self._lock:
            if self._file.tensors:
                self._idle = (cache, tokens)


class Generation:
    """Text as it is generated: an iterator over its pieces.

    Attributes:
        tokens: The generated tokens up to now.
        prompt_tokens: How many tokens the prompt has.
        finish: None while it goes on; then "stop" (an end token or a stop text), "length", or "cancelled" (`close`).

    Example:
        >>> import tempfile
        >>> from ternary import llm
        >>> config = llm.ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32)
        >>> llm.save(llm.Decoder(config, ternary=True), path := tempfile.mkdtemp() + "/m.ternary")
        >>> generation = llm.load(path).generate([1, 2, 3], max_tokens=4)
        >>> len(list(generation.iterate_tokens())), generation.finish
        (4, 'length')
    """

    def __init__(self, model: Model, prompt: Sequence[int], sampling: Sampling):
        self._model = model
        self._cache, cached = model.take_cache(prompt)
        try:
            self._running = Running(model.engine, self._cache, cached, prompt, sampling, model.ends)
        except BaseException:
            model.give_back(self._cache, cached)
            raise
        self.prompt_tokens: int = self._running.prompt_tokens
        self.finish: Finish | None = None
        self._open = True
        self._stop = sampling.stop
        self._pieces: PyGenerator[str, None, None] | None = None  # made at the first use: it refers to this object

    @property
    def tokens(self) -> list[int]:
        """The generated tokens up to now."""
        return self._running.tokens[self.prompt_tokens :]

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._pieces is None:
            self._pieces = self._text(StopFinder(self._stop))
        return next(self._pieces)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End early; nothing happens if it has ended."""
        if self._pieces is not None:
            self._pieces.close()
        self._end("cancelled")

    def text(self) -> str:
        """Generate to the end and return the whole text."""
        return "".join(self)

    def _end(self, why: Finish) -> None:
        if self._open:
            self._open, self.finish = False, why
            self._model.give_back(self._cache, self._running.cached)

    def _text(self, stops: StopFinder) -> PyGenerator[str, None, None]:
        try:
            stream = self._model.tokenizer.stream()
            for token in self.iterate_tokens():
                shown, found = stops.add(stream.add(token))
                if shown:
                    yield shown
                if found:
                    self._end("stop")
                    return
            last, found = stops.add(stream.rest())
            last += "" if found else stops.rest()
            if last:
                yield last
        finally:
            self._end("cancelled")

    def iterate_tokens(self) -> Iterator[int]:
        """Generate tokens instead of text, for a model without a tokenizer."""
        running = self._running
        while running.finish is None and self._open:
            rows = running.rows(BATCH)
            try:
                logits = self._model.engine.run(rows)
            except BaseException:
                running.forget()
                raise
            running.ran(rows)
            if rows[-1].logits:
                token = running.accept(logits[0])
                if token is not None:
                    yield token
        self._end(running.finish or "cancelled")
