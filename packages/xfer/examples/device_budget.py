"""Blocks of device memory under a budget: what may move away makes room, and what is forgotten is found.

Run: python device_budget.py [--device cuda]        (without a GPU, host memory plays the device)
"""

import argparse

import numpy as np

import xfer


def main() -> None:
    """Allocate more than the budget, watch a block move to the host and come back, and find a lost one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["host", "cuda"], default="host", help="where memory is (default host)")
    allocator = xfer.HostAllocator() if parser.parse_args().device == "host" else xfer.CupyAllocator()
    with xfer.GpuMemoryManager(allocator, budget="8MiB") as manager:
        weights = manager.allocate("6MiB", device="cuda:0", spillable=True)
        with weights.use((6 << 18,), np.float32) as array:
            array[:] = 1
        del array  # a block stays in place while a view of it is alive
        scratch = manager.allocate("4MiB", device="cuda:0")  # does not fit beside the weights
        print(f"the weights are in {weights.place} memory now")
        manager.release(scratch)
        with weights.use((6 << 18,), np.float32) as array:
            print(f"and back, unharmed: {float(array.sum()) == 6 << 18}")
        for leak in manager.leaks():
            print(f"not released: {leak.nbytes >> 20} MiB from {leak.site.split('/')[-1]}")
        manager.release(weights)


if __name__ == "__main__":
    main()
