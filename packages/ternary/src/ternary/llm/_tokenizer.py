"""Text to tokens and back with the `tokenizers` library, and chat templates in jinja2's sandbox."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ternary.errors import ChatTemplateError, MissingExtraError, ModelFileError

__all__ = ["StopFinder", "TextStream", "Tokenizer"]


_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<end_of_turn>", "<|end_of_turn|>", "</s>")
"""Special tokens with which chat templates close a turn."""


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
        # Settings of its training, which a prompt must not follow: it would be cut, or filled up, without a word.
        self._inner.no_truncation()
        self._inner.no_padding()
        self._metadata = metadata

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of a text, `special` with those that the tokenizer puts around it (such as a BOS).

        Raises:
            ValueError: The text has half of a surrogate pair, as bytes that are not UTF-8 become in Python.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as e:
            raise ValueError(
                f"got a text that is not Unicode: {text[e.start : e.end]!r} at character {e.start}"
            ) from None
        ids: list[int] = self._inner.encode(text, add_special_tokens=special).ids
        bos = self._metadata.get("bos")
        if special and self._metadata.get("add_bos") and bos is not None and ids[:1] != [bos]:
            return [int(bos), *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def ends(self) -> frozenset[int]:
        """Return the tokens that end a text or a turn: the tokenizer's own and those that end its template's turns.

        Published files do not always list the second kind: without it a chat model would go on and speak for the user.
        """
        template = self._metadata.get("chat_template") or ""
        names = [self._metadata.get("eos_token"), *(name for name in _TURN_ENDS if name in template)]
        known = {self._inner.token_to_id(name) for name in names if isinstance(name, str)}
        special = {at for at, token in self._inner.get_added_tokens_decoder().items() if token.special}
        return frozenset(known & special)

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
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        names = {key: self._metadata.get(key, "") for key in ("bos_token", "eos_token")}
        try:
            text = environment.from_string(template).render(
                messages=[dict(m) for m in messages], add_generation_prompt=True, tools=None, documents=None, **names
            )
        except ChatTemplateError:
            raise
        except (errors.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as e:
            raise ChatTemplateError(f"the chat template fails: {e}") from None
        return self.encode(text, special=False)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """The filter as transformers has it: unlike jinja2's own it does not escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


@functools.cache
def _generation_tag() -> Any:
    """Return the extension for `{% generation %}`, with which templates mark the assistant's part for training."""
    extension, nodes = _optional("jinja2.ext").Extension, _optional("jinja2.nodes")

    class Generation(extension):  # type: ignore[misc, valid-type] # jinja2 is imported late
        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    return Generation


def _refuse(message: str) -> None:
    raise ChatTemplateError(f"the chat template refuses the messages: {message}")


class TextStream:
    """Turns tokens that come one by one into text; a character of several tokens comes out with its last one.

    Bytes that make no character become marks (U+FFFD), whatever their order: no sequence of tokens is an error.
    """

    def __init__(self, inner: Any):
        self._inner = inner
        self._shown: list[int] = []  # the last tokens whose text was returned; the text of the next depends on them
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        """Return the text that this token completes, perhaps none."""
        self._pending.append(token)
        text = self._new_text()
        return "" if not text or text.endswith("\ufffd") else self._take(text)

    def rest(self) -> str:
        """Return what the last tokens leave, when no more come: the mark of a character that is not whole."""
        return self._take(self._new_text())

    def _take(self, text: str) -> str:
        self._shown, self._pending = self._pending or self._shown, []
        return text

    def _new_text(self) -> str:
        return self._decode([*self._shown, *self._pending])[len(self._decode(self._shown)) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._inner.decode(ids, skip_special_tokens=True))


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
