"""Memory of one and of several workers that answer with one copy of a language model's weights.

    python examples/shared_workers.py MODEL.ternary --workers 1 4

The weights go to shared memory once. Each worker maps them and generates; the table counts a shared page in parts, one
for each process that maps it (Pss of Linux), so the sum is what the machine holds.
"""

import argparse
import multiprocessing
import re
from pathlib import Path

import zerocopy
from ternary import llm


def work(ref, tokens, answers, go_on):
    """Load the model, generate, and wait while memory is counted."""
    model = llm.load(ref, threads=1, context=512)
    answers.put(list(model.generate([1, 2, 3], max_tokens=tokens).iterate_tokens()))
    go_on.wait()


def proportional(pid):
    """Return a process's memory in bytes, each shared page divided by the processes that map it."""
    return 1024 * int(re.search(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])


def measure(ref, workers, tokens):
    """Start workers; return the sum of their memory, and check that their answers are equal."""
    context = multiprocessing.get_context("spawn")
    answers, go_on = context.Queue(), context.Event()
    started = [context.Process(target=work, args=(ref, tokens, answers, go_on)) for _ in range(workers)]
    for process in started:
        process.start()
    found = [answers.get(timeout=300) for _ in started]
    assert all(answer == found[0] for answer in found)
    total = sum(proportional(process.pid) for process in started)
    go_on.set()
    for process in started:
        process.join()
    return total


def main():
    """Publish, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model file of `ternary convert`")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=8)
    args = parser.parse_args()
    size = Path(args.model).stat().st_size
    ref = llm.publish(args.model)
    print(f"model file {size / 1e6:.0f} MB")
    for workers in args.workers:
        total = measure(ref, workers, args.tokens)
        print(f"{workers} worker(s): {total / 1e6:.0f} MB in all, {total / size:.2f} times the file", flush=True)
    zerocopy.unpublish(ref)


if __name__ == "__main__":
    main()
