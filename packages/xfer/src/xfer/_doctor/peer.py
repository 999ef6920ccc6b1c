"""The other process of a check or a measurement: `python -m xfer._doctor.peer sum|answer ARGUMENTS`."""

from __future__ import annotations

import sys

import numpy as np

import xfer


def print_sum(handle: str) -> None:
    """Print the sum of the array behind a handle.

    Args:
        handle: Its bytes, in hexadecimal.
    """
    print(int(xfer.get(bytes.fromhex(handle)).sum()))


def answer(receiver: str, sender: str) -> None:
    """Answer each array with a small one, until the other end closes.

    Args:
        receiver: The end to receive from, in hexadecimal.
        sender: The end to answer with, likewise.
    """
    reply = np.zeros(1)
    with xfer.Sender.from_bytes(bytes.fromhex(sender)) as outgoing:
        for array in xfer.Receiver.from_bytes(bytes.fromhex(receiver)):
            del array
            outgoing.send(reply)


if __name__ == "__main__":
    if sys.argv[1] == "sum":
        print_sum(sys.argv[2])
    else:
        answer(sys.argv[2], sys.argv[3])
