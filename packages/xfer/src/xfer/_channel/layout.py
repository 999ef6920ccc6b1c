"""Where everything lies in a channel's memory.

The compiled core has the same numbers in `_csrc/shared.h` and reports them by `layout()`; it is not used where they
differ. All values are little-endian 64-bit words, the counters 64 bytes apart so that they never share a cache line.
"""

from __future__ import annotations

COUNTERS = (
    "HEAD", "TAIL", "SENDER_PID", "RECEIVER_PID", "SENDER_CLOSED", "RECEIVER_CLOSED", "SENDER_WAITS", "RECEIVER_WAITS",
    "CAPACITY", "RETURN_HEAD", "RETURN_TAIL", "SLAB_SPENT",
)  # fmt: skip
(
    HEAD, TAIL, SENDER_PID, RECEIVER_PID, SENDER_CLOSED, RECEIVER_CLOSED, SENDER_WAITS, RECEIVER_WAITS, CAPACITY,
    RETURN_HEAD, RETURN_TAIL, SLAB_SPENT,
) = (8 * number for number in range(len(COUNTERS)))  # fmt: skip
HOLDERS, EXPECTED = 1, 2  # beside an end's process: how many held it, and a process that is to attach it
NOTE_AT = 1024
RETURNS_AT = 1536
ENTRY = 640  # a handle has at most 64 dimensions: 60 + 512 + 4 bytes, and the entry's own 24
MESSAGE = "<IIQII"
DRAIN_EACH = 8
SENT, CANNOT, UNKNOWN, FULL = range(4)
WAKE_AT_ONCE, WAKE_AT_HALF = 1, 2  # what an end that waits asks of the other

LAYOUT = {
    "counters": len(COUNTERS), "counter_bytes": 64, "returns_at": RETURNS_AT, "entry": ENTRY, "message": 24,
    "drain_each": DRAIN_EACH, "sent": SENT, "cannot": CANNOT, "unknown": UNKNOWN, "full": FULL,
}  # fmt: skip
