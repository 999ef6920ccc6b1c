"""Plain processes, forked and spawned, without Ray: one copy for all, and models of every common shape."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zerocopy
from zerocopy import ModelRef

Publish = Callable[..., ModelRef]
# Python 3.12 and later warn of forking beside threads; torch and pytest-timeout have some that a child does not need.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


SCRIPT = """
import multiprocessing, sys, torch, zerocopy

class Net(torch.nn.Sequential):
    pass

def serve(ref, inputs, results):
    torch.set_num_threads(1)
    with torch.no_grad():
        results.put(ref.load()(torch.tensor(inputs)).tolist())

if __name__ == "__main__":
    model = Net(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    ref = zerocopy.publish(model)
    inputs = torch.randn(3, 8)
    context = multiprocessing.get_context(sys.argv[1])
    results = context.SimpleQueue()
    workers = [context.Process(target=serve, args=(ref, inputs.tolist(), results), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    answers = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    print(answers == [model(inputs).tolist()] * 2)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_compute_the_same(method: str, fresh_script: Any) -> None:
    """Two workers of either kind load a class of the main script and give the original's answer."""
    assert fresh_script(SCRIPT, method).stdout == "True\n"


def test_ray_is_not_needed(fresh_python: Any) -> None:
    """Publishing and loading import neither Ray nor safetensors nor torch's compiler."""
    code = """
import sys, torch, zerocopy
ref = zerocopy.publish(torch.nn.Linear(4, 4))
model = ref.load()
with zerocopy.strict(model):
    model(torch.ones(1, 4))
assert zerocopy.written(model) == ()
print(sorted({"ray", "safetensors", "torch._dynamo", "rich"} & set(sys.modules)))
"""
    assert fresh_python(code).stdout.strip() == "[]"


def test_classes_of_the_main_script_travel(tmp_path: Any, fresh_python: Any) -> None:
    """A class defined in a script loads in a process that never saw the script."""
    code = """
import sys, torch, zerocopy
class Doubler(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)
zerocopy.publish(Doubler(3, 3), name="doubler", directory=sys.argv[1], keep=True)
"""
    fresh_python(code, str(tmp_path))
    ref = zerocopy.current("doubler", directory=tmp_path)
    model = ref.load(cached=False)
    assert type(model).__name__ == "Doubler"
    inputs = torch.ones(1, 3)
    assert torch.equal(model(inputs), 2 * nn.functional.linear(inputs, model.weight, model.bias))
    zerocopy.unpublish(ref)


def test_forked_child_publishes_on_its_own(simple_model: nn.Module, publish: Publish, eventually: Any) -> None:
    """A child of a publisher has its own caretaker; its segments go with it, the parent's stay."""
    ref = publish(simple_model)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def child() -> None:
        results.put(zerocopy.publish(nn.Linear(2, 2), name="from-child").path)

    worker = context.Process(target=child, daemon=True)
    worker.start()
    path = results.get()
    worker.join()
    worker.close()
    results.close()
    assert eventually(lambda: not Path(path).exists())
    assert ref.load(cached=False) is not None
