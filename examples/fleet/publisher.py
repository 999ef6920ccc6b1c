"""Puts model files into shared memory, once for all workers of this machine: `publisher.py NAME`.

Each line of standard input is the path of a model file, which becomes the newest version of the name. The answer is a
line. The last version stays until the input ends and no worker has it loaded.
"""

from __future__ import annotations

import sys

from ternary import llm


def main(name: str) -> None:
    """Publish one model file after the other; a new version gives the older one up."""
    for line in sys.stdin:
        llm.publish(line.strip(), name=name)
        print("published", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
