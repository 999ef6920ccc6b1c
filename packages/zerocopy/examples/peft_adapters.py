"""Answer each request with the LoRA adapter that it names, over one shared base.

python packages/zerocopy/examples/peft_adapters.py [WORKERS]

A base with all adapters is published once, and each worker switches adapters per request. An adapter that is trained
later is published over the base, and stores its own weights alone.
"""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import zerocopy

ADAPTERS = ("french", "german", "polite")


class Base(nn.Module):
    """Something to adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1024, 1024)
        self.last = nn.Linear(1024, 1024)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the answer."""
        return self.last(torch.relu(self.first(x)))


def fill(model: nn.Module, adapter: str, value: float) -> None:
    """Give an adapter weights, as training would."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if f".{adapter}." in name:
                weight.fill_(value)


def build() -> Any:
    """Return the base with three adapters."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["first", "last"])
    model = get_peft_model(Base(), config, adapter_name=ADAPTERS[0])
    for adapter in ADAPTERS[1:]:
        model.add_adapter(adapter, config)
    for number, adapter in enumerate(ADAPTERS):
        fill(model, adapter, (number + 1) / 100)
    return model.eval()


def answer(model: Any, adapter: str) -> float:
    """Answer one request."""
    model.set_adapter(adapter)
    with torch.no_grad():
        return float(model(torch.ones(1, 1024)).sum())


def work(ref: zerocopy.ModelRef, requests: Any, answers: Any) -> None:
    """Answer requests in one worker until there are none."""
    torch.set_num_threads(1)
    model = ref.load()
    while True:
        adapter = requests.get()
        if adapter is None:
            answers.put(len(zerocopy.written(model)))
            return
        answers.put((adapter, answer(model, adapter)))


def main(workers: int = 2) -> None:
    """Publish, answer requests for adapters in turn, and publish a retrained adapter over the base."""
    torch.set_num_threads(1)
    model = build()
    ref = zerocopy.publish(model)
    context = multiprocessing.get_context("spawn")
    requests, answers = context.Queue(), context.Queue()
    pool = [context.Process(target=work, args=(ref, requests, answers)) for _ in range(workers)]
    for process in pool:
        process.start()
    for number in range(30):
        requests.put(ADAPTERS[number % 3])
    given = [answers.get() for _ in range(30)]
    wanted = {adapter: answer(model, adapter) for adapter in ADAPTERS}
    right = all(abs(value - wanted[adapter]) < 1e-2 for adapter, value in given)
    print(f"30 answers of {len(wanted)} adapters by {workers} workers are right: {right}")
    for _ in pool:
        requests.put(None)
    print(f"weights written by workers: {sum(answers.get() for _ in pool)}")
    for process in pool:
        process.join()
    fill(model, "polite", 0.5)
    tuned = zerocopy.publish(model, base=ref)
    stored = sum(info.stored_nbytes for info in zerocopy.report().segments if tuned.path.endswith(info.file))
    print(f"a retrained adapter stores {stored >> 10} KiB of {tuned.nbytes >> 10}")
    zerocopy.unpublish(tuned)
    zerocopy.unpublish(ref)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
