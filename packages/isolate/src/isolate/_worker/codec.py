"""Values to bytes and back for one link; uses msgspec for plain data where it is installed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .errors import WireError
from .wire import MAX_DEPTH, Hook, Special, pack, revive, unpack

_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_PLAIN = _SCALARS | {list, dict}
_STR = frozenset({str})
_LARGE = 65536


def is_plain(value: Any, depth: int = 0) -> bool:
    """Return whether native MessagePack restores a value exactly, with all its types."""
    kind = type(value)
    if kind in _SCALARS:
        return kind is not bytes or len(value) < _LARGE
    if kind is dict:
        if value and not _STR.issuperset(map(type, value)):
            return False
        items: Any = value.values()
    elif kind is list:
        items = value
    else:
        return False
    kinds = set(map(type, items))
    if not _PLAIN.issuperset(kinds) or depth > MAX_DEPTH:
        return False
    if kinds.isdisjoint((list, dict, bytes)):
        return True
    return all(is_plain(item, depth + 1) for item in items if type(item) in (list, dict, bytes))


class Codec:
    """Encoder and decoder of one link.

    Args:
        special: Encodes arrays and callables; see `wire.pack`.
        hook: Decodes the extension types that `special` makes; called with code and payload.
        undo: Called with each code and payload of a message whose encoding failed.
    """

    def __init__(self, special: Special, hook: Hook, undo: Callable[[int, bytes], None]) -> None:
        self._special = special
        self._special_hook = hook
        self._undo = undo
        self._depth = threading.local()
        self._fast: tuple[Callable[[Any], bytes], Callable[[Any], Any], tuple[type[BaseException], ...]] | None = None
        try:
            from msgspec import DecodeError, msgpack
        except ImportError:
            return
        decoder = msgpack.Decoder(ext_hook=self._hook)
        self._fast = (msgpack.Encoder().encode, decoder.decode, (DecodeError, ValueError, RecursionError))

    def encode(self, value: Any) -> bytes:
        """Encode one value."""
        if self._fast is not None and is_plain(value):
            try:
                return self._fast[0](value)
            except (OverflowError, UnicodeEncodeError):  # an int of more than 64 bits, a lone surrogate
                pass
        return self._pack(value)

    def encode_call(
        self, target: str | int, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float | None, depth: int
    ) -> bytes:
        """Encode a call; only the user's arguments are examined."""
        if self._fast is not None and (not args or is_plain(list(args))) and (not kwargs or is_plain(kwargs)):
            try:
                return self._fast[0]((target, args, kwargs, deadline, depth))
            except (OverflowError, UnicodeEncodeError):
                pass
        return self._pack([target, list(args), kwargs, deadline, depth])

    def _pack(self, value: Any) -> bytes:
        made: list[tuple[int, bytes]] = []

        def special(part: Any) -> tuple[int, bytes] | None:
            found = self._special(part)
            if found is not None:
                made.append(found)
            return found

        try:
            return pack(value, special)
        except BaseException:
            for code, payload in made:
                self._undo(code, payload)
            raise

    def decode(self, payload: Any) -> Any:
        """Decode one value; raises `WireError` for anything outside the format."""
        if self._fast is None:
            return unpack(bytes(payload), self._hook)
        try:
            return self._fast[1](payload)
        except WireError:
            raise
        except self._fast[2]:
            # msgspec is stricter than the format about surrogates; the slow reader decides.
            return unpack(bytes(payload), self._hook)

    def _hook(self, code: int, payload: Any) -> Any:
        depth = getattr(self._depth, "value", 0)
        if depth > MAX_DEPTH:
            raise WireError(f"a value is nested deeper than {MAX_DEPTH} levels")
        self._depth.value = depth + 1
        try:
            if 1 <= code <= 7:
                return revive(code, payload, self.decode)
            return self._special_hook(code, bytes(payload))
        finally:
            self._depth.value = depth
