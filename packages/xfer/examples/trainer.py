"""A trainer with spawned workers: each batch is a tree of tensors, received without a copy and changed in place.

Run: python trainer.py [--batches 20] [--workers 2]
"""

import argparse
import multiprocessing

import torch

import xfer


def load(sender: xfer.Sender, seed: int, count: int) -> None:
    """Make batches in a worker process, and send each as one message."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    with sender:
        for number in range(count):
            images = torch.rand((64, 3, 32, 32), generator=generator)
            sender.send({"images": images, "labels": torch.arange(64) % 10, "number": number})


def main() -> None:
    """Train a small model on what the workers send."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=20, help="how many batches each worker makes (default 20)")
    parser.add_argument("--workers", type=int, default=2, help="how many worker processes (default 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the workers have the other cores
    spawn = multiprocessing.get_context("spawn")
    channels = [xfer.Channel(capacity=4) for _ in range(arguments.workers)]
    workers = [
        spawn.Process(target=load, args=(channel.sender, seed, arguments.batches))
        for seed, channel in enumerate(channels)
    ]
    for worker in workers:
        worker.start()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    open_ends, seen = [channel.receiver for channel in channels], 0
    while open_ends:
        for receiver in xfer.wait(open_ends):  # many workers to one trainer
            try:
                batch = receiver.recv(as_="torch")
            except xfer.errors.ChannelClosedError:
                open_ends.remove(receiver)
                continue
            batch["images"].sub_(0.5)  # in place: only this process sees it
            loss = torch.nn.functional.cross_entropy(model(batch["images"]), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += 1
    for worker, channel in zip(workers, channels, strict=True):
        worker.join()
        channel.close()
    print(f"trained on {seen} batches of {arguments.workers} workers")


if __name__ == "__main__":
    main()
