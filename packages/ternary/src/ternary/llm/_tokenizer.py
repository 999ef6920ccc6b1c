"""Text to tokens and back with the `tokenizers` library, and chat templates in jinja2's sandbox."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ternary.errors import ChatTemplateError, MissingExtraError, ModelFileError

__all__ = ["StopFinder", "TextStream", "Tokenizer"]


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise MissingExtraError(f"{e.name or name} is needed here; pip install 'pentad-ternary[llm]'") from e


class Tokenizer:
    """The tokenizer of a model file, with its chat template.

    Args:
        text: JSON of the `tokenizers` library.
        metadata: The model file's, with `chat_template`, `bos_token`, `eos_token` and `add_bos`.

    Raises:
        ModelFileError: The JSON is no tokenizer.
        MissingExtraError: tokenizers is not installed.
    """

    def __init__(self, text: str, metadata: Mapping[str, Any]):
        try:
            self._inner = _optional("tokenizers").Tokenizer.from_str(text)
        except MissingExtraError:
            raise
        except Exception as e:
            raise ModelFileError(f"the model file's tokenizer is damaged: {e}") from None
        self._metadata = metadata

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of a text, `special` with those that the tokenizer puts around it (such as a BOS)."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=special).ids
        bos = self._metadata.get("bos")
        if special and self._metadata.get("add_bos") and bos is not None and ids[:1] != [bos]:
            return [int(bos), *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def stream(self) -> TextStream:
        """Return a decoder for tokens that come one by one."""
        return TextStream(self._inner)

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant answers.

        Raises:
            ChatTemplateError: There is no template, it fails, or a message is not a mapping with role and content.
        """
        template = self._metadata.get("chat_template")
        if not template:
            raise ChatTemplateError("the model has no chat template; give a text instead of messages")
        for message in messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
                raise ChatTemplateError(f"got the message {message!r}; wanted a mapping with 'role' and 'content'")
        sandbox, errors = _optional("jinja2.sandbox"), _optional("jinja2")
        environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        names = {key: self._metadata.get(key, "") for key in ("bos_token", "eos_token")}
        try:
            text = environment.from_string(template).render(
                messages=[dict(m) for m in messages], add_generation_prompt=True, **names
            )
        except (errors.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as e:
            raise ChatTemplateError(f"the chat template fails: {e}") from None
        return self.encode(text, special=False)


def _refuse(message: str) -> None:
    raise ChatTemplateError(f"the chat template refuses the messages: {message}")


class TextStream:
    """Turns tokens that come one by one into text; a character of several tokens comes out with its last one."""

    def __init__(self, inner: Any):
        self._inner = inner
        self._stream = _optional("tokenizers.decoders").DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        """Return the text that this token completes, perhaps none."""
        text: str | None = self._stream.step(self._inner, token)
        self._pending = [] if text is not None else [*self._pending, token]
        return text or ""

    def rest(self) -> str:
        """Return what the last tokens leave, when no more come: the mark of a character that is not whole."""
        pending, self._pending = self._pending, []
        return str(self._inner.decode(pending, skip_special_tokens=True)) if pending else ""


class StopFinder:
    """Holds text back while it may be the beginning of a stop text."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Return the text that may be shown, and whether a stop text was found behind it."""
        self._held += text
        places = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if places:
            shown, self._held = self._held[: min(places)], ""
            return shown, True
        keep = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), keep, -1):
                if self._held.endswith(stop[:size]):
                    keep = size
                    break
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def rest(self) -> str:
        """Return what was held back, when no more text comes."""
        shown, self._held = self._held, ""
        return shown
