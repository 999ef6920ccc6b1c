"""Values to bytes and back for one link; uses msgspec for plain data where it is installed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from . import kinds
from .copies import STATE
from .errors import OverloadedError, UnsupportedTypeError, WireError
from .wire import KIND, MAX_DEPTH, Hook, RefusedError, Room, describe, pack, revive, unpack

_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_PLAIN = _SCALARS | {list, dict}
_STR = frozenset({str})
_LARGE = 65536
_FAST_LIMIT = 4096


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


Made = list[tuple[int, int]]
"""What encoding registers for a message: codes of extension types, and the numbers under which it is registered."""
Register = Callable[[Any, Made], "tuple[int, bytes] | None"]


class Codec:
    """Encoder and decoder of one link.

    Args:
        special: Encodes arrays and callables; see `wire.pack`. It notes what it registers before it does so.
        hook: Decodes the extension types that `special` makes; called with code and payload.
        undo: Called with each note of a message that is not sent: code and number.
        decoded_limit: Estimated bytes that one message of the other side may become; None trusts the other side.
    """

    def __init__(
        self, special: Register, hook: Hook, undo: Callable[[int, int], None], decoded_limit: int | None = None
    ) -> None:
        self._special = special
        self._special_hook = hook
        self._undo = undo
        self._state = _State()
        self._decoded_limit = decoded_limit
        self._fast: tuple[Callable[[Any], bytes], Callable[[Any], Any], tuple[type[BaseException], ...]] | None = None
        try:
            from msgspec import DecodeError, msgpack

            decoder = msgpack.Decoder(ext_hook=self._hook)
            self._fast_numbers = msgpack.Decoder(list[int]).decode
            self._fast = (msgpack.Encoder().encode, decoder.decode, (DecodeError, ValueError, RecursionError))
        except Exception:  # an extension has none, or one that is broken, or another module of that name
            return

    def encode(self, value: Any, made: Made | None = None) -> bytes:
        """Encode one value; `made` gets what `undo_all` takes back."""
        if self._fast is not None and is_plain(value):
            try:
                return self._fast[0](value)
            except (OverflowError, UnicodeEncodeError):  # an int of more than 64 bits, a lone surrogate
                pass
        return self._pack(value, made)

    def encode_call(
        self,
        target: str | int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float | None,
        depth: int,
        made: Made | None = None,
    ) -> bytes:
        """Encode a call; only the user's arguments are examined. `made` gets what `undo_all` takes back."""
        if self._fast is not None and (not args or is_plain(list(args))) and (not kwargs or is_plain(kwargs)):
            try:
                return self._fast[0]((target, args, kwargs, deadline, depth))
            except (OverflowError, UnicodeEncodeError):
                pass
        before, STATE.deadline = STATE.deadline, deadline
        try:
            return self._pack([target, list(args), kwargs, deadline, depth], made)
        except UnsupportedTypeError as failure:  # its place, as the caller knows it
            text = str(failure)
            for place, name in (("value[1]", "args"), ("value[2]", "kwargs")):
                text = name + text.removeprefix(place) if text.startswith(place) else text
            raise UnsupportedTypeError(text) from None
        finally:
            STATE.deadline = before

    def undo_all(self, made: Made) -> None:
        """Undo what encoding has registered for a message that was not sent."""
        while made:
            self._undo(*made.pop())

    def _pack(self, value: Any, made: Made | None = None) -> bytes:
        made = [] if made is None else made

        def special(part: Any) -> tuple[int, bytes] | None:
            found = describe(part, special)
            if found is None:
                try:
                    return self._special(part, made)
                except UnsupportedTypeError as failure:
                    raise RefusedError(part, str(failure)) from None
            return found

        try:
            return pack(value, special)
        except BaseException:
            self.undo_all(made)
            raise

    def decode(self, payload: Any) -> Any:
        """Decode one value.

        Raises:
            WireError: It is outside the format.
            OverloadedError: It would take more memory than the limit.
            UnsupportedTypeError: A part of it cannot be built here.
        """
        return self.weigh(payload)[0]

    def weigh(self, payload: Any) -> tuple[Any, int]:
        """Decode one value; return it and an estimate of its bytes.

        The fast decoder accepts keys whose hashes collide, and knows no limit of memory. Larger messages of a side that
        is not trusted therefore go through the other one.
        """
        if self._decoded_limit is None:
            if self._fast is None:
                return unpack(bytes(payload), self._hook), 0
        elif self._fast is None or len(payload) > _FAST_LIMIT:
            return self._unpack(payload)
        try:
            return self._fast[1](payload), _FAST_LIMIT
        except (WireError, OverloadedError, UnsupportedTypeError):
            raise
        except self._fast[2]:
            # msgspec is stricter than the format about surrogates; the slow reader decides.
            return self._unpack(payload)

    def numbers(self, payload: Any) -> list[int]:
        """Decode a list of numbers and nothing else."""
        if self._fast is None:
            found = self.decode(payload)
            if type(found) is not list or not all(type(number) is int for number in found):
                raise WireError("a list of numbers holds something else")
            return found
        try:
            return self._fast_numbers(payload)
        except self._fast[2] as failure:
            raise WireError(f"a list of numbers holds something else: {failure}") from None

    def _unpack(self, payload: Any) -> tuple[Any, int]:
        if self._decoded_limit is None:
            return unpack(bytes(payload), self._hook), 0
        room = Room(self._decoded_limit)
        before, self._state.room = self._state.room, room
        try:
            value = unpack(payload, self._hook, room)
        finally:
            self._state.room = before
        return value, self._decoded_limit - room.left

    def _inner(self, payload: Any) -> Any:
        room = self._state.room
        if room is None:
            return self.decode(payload)
        return unpack(payload, self._hook, room)

    def _hook(self, code: int, payload: Any) -> Any:
        state = self._state
        if state.depth > MAX_DEPTH:
            raise WireError(f"a value is nested deeper than {MAX_DEPTH} levels")
        state.depth += 1
        try:
            if 1 <= code <= 7:
                return revive(code, payload, self._inner)
            if code == KIND:
                return kinds.build(self._inner(payload), trusted=self._decoded_limit is None)
            return self._special_hook(code, bytes(payload))
        finally:
            state.depth -= 1


class _State(threading.local):
    """Of each thread that decodes: the nesting of extension types, and what is left for the message."""

    depth = 0
    room: Room | None = None
