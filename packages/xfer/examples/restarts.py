"""Two services, one of which is killed and started again every night; the other goes on with the next one.

Run: python restarts.py [--nights 3]
"""

import argparse
import os
import signal
import subprocess
import sys

import numpy as np

import xfer


def serve(receiver: xfer.Receiver, sender: xfer.Sender) -> None:
    """Answer each array with its sum, until this process is killed."""
    for array in receiver:
        sender.send(np.array([array.sum()]))


def main() -> None:
    """Ask the service, kill it in the night, start it again, and ask on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nights", type=int, default=3, help="how often the service is restarted (default 3)")
    parser.add_argument("--ends", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ends:
        receiver, sender = map(bytes.fromhex, arguments.ends)
        serve(xfer.Receiver.from_bytes(receiver), xfer.Sender.from_bytes(sender))
        return
    answers = 0
    with xfer.Channel(4) as questions, xfer.Channel(4) as replies:
        command = [sys.executable, __file__, "--ends", bytes(questions.receiver).hex(), bytes(replies.sender).hex()]
        for _ in range(arguments.nights):
            service = subprocess.Popen(command)
            while True:
                try:
                    questions.sender.send(np.arange(100_000), timeout=30)
                    assert replies.receiver.recv(timeout=30)[0] == 4999950000
                except xfer.errors.PeerDiedError:  # the next service has not attached yet
                    continue
                break
            answers += 1
            os.kill(service.pid, signal.SIGKILL)
            service.wait()
    print(f"{answers} answers of {arguments.nights} services")


if __name__ == "__main__":
    main()
