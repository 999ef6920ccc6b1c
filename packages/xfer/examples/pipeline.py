"""A loader process feeds a worker: arrays go over one by one, the worker's result comes back.

Run: python pipeline.py [--batches 100]
"""

import argparse
import multiprocessing
import time

import numpy as np

import xfer


def work(batches: xfer.Receiver, results: xfer.Sender) -> None:
    """Take batches until the loader closes; each array is read where the loader put it, with no copy."""
    with results:
        for batch in batches:
            results.send(batch.mean(axis=0))


def main() -> None:
    """Send batches, print the rate, and check one result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=100, help="how many batches of 256 x 1024 float32 (default 100)")
    count = parser.parse_args().batches
    batch = np.random.default_rng(0).random((256, 1024), np.float32)
    with xfer.Channel(capacity=4) as there, xfer.Channel(capacity=4) as back:
        worker = multiprocessing.get_context("spawn").Process(target=work, args=(there.receiver, back.sender))
        worker.start()
        there.sender.send(batch)
        mean = back.receiver.recv(timeout=30)  # the first answer waits for the worker to start
        assert np.allclose(mean, batch.mean(axis=0))
        start = time.perf_counter()
        for _ in range(count):
            there.sender.send(batch)  # waits by itself when four are under way
            back.receiver.recv()
        seconds = time.perf_counter() - start
        there.sender.close()  # the worker's loop ends
        worker.join()
    print(f"{count} batches of 1 MiB there and a result back: {count / seconds:.0f} per second")


if __name__ == "__main__":
    main()
