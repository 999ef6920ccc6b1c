"""Compute features in the workers of a torch DataLoader with one model that they share.

python packages/zerocopy/examples/dataloader_workers.py [WORKERS] [fork|spawn]
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import zerocopy

ITEMS = 64


class Features(Dataset[tuple[torch.Tensor, int]]):
    """Numbers, and what a shared model makes of them.

    Args:
        ref: The published model. Only the reference is sent to the workers.
    """

    def __init__(self, ref: zerocopy.ModelRef) -> None:
        self.ref = ref

    def __len__(self) -> int:
        """Return how many items there are."""
        return ITEMS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return the features of an item, and how many weights this worker has written."""
        model = self.ref.load()  # once per worker: it is kept as long as it is used
        self.model = model
        with torch.no_grad():
            return model(torch.full((1, 1024), float(index)))[0], len(zerocopy.written(model))


def main(workers: int = 2, start: str = "spawn") -> None:
    """Publish, load all items by workers, and compare them with the model's own answers."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(4)]).eval()
    ref = zerocopy.publish(model)
    loader = DataLoader(Features(ref), batch_size=8, num_workers=workers, multiprocessing_context=start)
    batches = list(loader)
    with torch.no_grad():
        wanted = model(torch.arange(float(ITEMS))[:, None].expand(ITEMS, 1024))
    same = torch.allclose(torch.cat([features for features, _ in batches]), wanted, rtol=1e-3, atol=1e-3)
    print(f"{ITEMS} items by {workers} workers, as the model's: {same}")
    print(f"weights written by workers: {sum(int(count.sum()) for _, count in batches)}")
    zerocopy.unpublish(ref)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
