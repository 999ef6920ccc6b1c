"""An asyncio server that hands arrays to a worker process and goes on serving while it waits for the answers.

Run: python asyncio_server.py [--requests 20]
"""

import argparse
import asyncio
import multiprocessing

import numpy as np

import xfer


def work(receiver: xfer.Receiver, sender: xfer.Sender) -> None:
    """Answer each array with its double."""
    with sender:
        for array in receiver:
            sender.send(2 * array)


async def serve(count: int) -> tuple[int, int]:
    """Send requests, and count the answers and the turns of the loop meanwhile."""
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    spawn = multiprocessing.get_context("spawn")
    with xfer.Channel(4) as there, xfer.Channel(4) as back:
        process = spawn.Process(target=work, args=(there.receiver, back.sender))
        process.start()
        ticking = asyncio.create_task(tick())

        async def ask() -> None:
            for number in range(count):
                await there.sender.asend(np.full(100_000, number))
            await asyncio.to_thread(there.sender.close)

        asking = asyncio.create_task(ask())
        answers = [int(array[0]) async for array in back.receiver]
        await asking
        ticking.cancel()
        process.join()
    assert answers == [2 * number for number in range(count)]
    return len(answers), turns


def main() -> None:
    """Run the server once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20, help="how many requests (default 20)")
    answers, turns = asyncio.run(serve(parser.parse_args().requests))
    print(f"{answers} answers; the loop turned while it waited: {turns > 1}")


if __name__ == "__main__":
    main()
