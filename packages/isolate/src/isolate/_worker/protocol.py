"""The messages of the protocol: one number for each, what it says, and the shape of its payload."""

from __future__ import annotations

from enum import IntEnum

PROTOCOL = 3
"""Version of the protocol; both ends must have the same."""


class Message(IntEnum):
    """The kind of a frame. Payloads are MessagePack values; `number` is the call number in the frame's header."""

    LOAD = 1
    """Host to worker, first: load the extension. Payload: a map, see `worker_handle`."""
    READY = 2
    """Worker to host: the extension is loaded. Payload: a map with protocol, python, executable, methods."""
    FAILED = 3
    """Worker to host: the extension cannot be loaded. Payload: a failure, see `failures`."""
    CALL = 4
    """Call `number` begins. Payload: `[name or callable's number, arguments, keyword arguments, deadline, depth]`."""
    RESULT = 5
    """Call `number` returned. Payload: the value."""
    ERROR = 6
    """Call `number` raised. Payload: a failure, see `failures`."""
    CANCEL = 7
    """The caller no longer wants call `number`. Payload: nil, or true to ask where it was."""
    ITEM = 8
    """The next item of the stream of call `number`. Payload: the item."""
    CREDIT = 9
    """The stream of call `number` may send more items. Payload: how many, 1 to 16."""
    END = 10
    """The stream of call `number` is complete. Payload: nil."""
    RELEASE = 11
    """The sender no longer references these callables of the receiver. Payload: a list of their numbers."""
    SEGMENT = 12
    """Shared memory segment `number` comes as the frame's descriptor. Payload: empty."""
    FREE = 13
    """Lent blocks that the sender no longer views. Payload: a list of their leases."""
    DROP = 14
    """Segments that the sender has closed. Payload: a list of their numbers."""
    STOP = 15
    """Host to worker, last: run `on_stop` and exit. Payload: nil."""
    PING = 16
    """A question whether the other side still handles messages. Payload: nil."""
    PONG = 17
    """The answer to PING. Payload: nil."""
    STACK = 18
    """Worker to host: where call `number` was when it was cancelled. Payload: a text."""
    CONFINED = 19
    """Worker to host, before code of the environment runs. Payload: a map with enforced, missing, tried."""


(
    LOAD,
    READY,
    FAILED,
    CALL,
    RESULT,
    ERROR,
    CANCEL,
    ITEM,
    CREDIT,
    END,
    RELEASE,
    SEGMENT,
    FREE,
    DROP,
    STOP,
    PING,
    PONG,
    STACK,
    CONFINED,
) = map(int, Message)  # plain numbers: comparing with a member of an enum is slower, and every frame is compared

WINDOW = 16
"""Items of a stream that may be in flight before the receiver grants more."""
