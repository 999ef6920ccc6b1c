"""One large array, several readers, one copy in memory; any process that gets the handle's bytes can read.

Run: python one_to_many.py [--readers 4]
"""

import argparse
import subprocess
import sys

import numpy as np

import xfer

READER = "import sys, xfer; array = xfer.get(bytes.fromhex(sys.argv[1])); print(int(array.sum()))"


def main() -> None:
    """Put an array, start readers that get only its handle, and release it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", type=int, default=4, help="how many processes read it (default 4)")
    count = parser.parse_args().readers
    with xfer.Pool("256MiB", trace=True) as pool:
        loan = pool.loan((4096, 4096), np.uint8)
        with loan as array:  # made in place: there is no second copy anywhere
            array[:] = 3
        token = bytes(loan.handle).hex()
        readers = [
            subprocess.Popen([sys.executable, "-c", READER, token], stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        sums = {int(reader.communicate()[0]) for reader in readers}
        print(f"{count} readers agree: {sums == {3 * 4096 * 4096}}; memory taken: {pool.stats().reserved >> 20} MiB")
        print(f"not released yet: {[leak.nbytes for leak in pool.leaks()]}")
        pool.release(loan.handle)
        try:
            xfer.get(bytes.fromhex(token))
        except xfer.errors.StaleHandleError as error:
            print(f"after the release: {error}")


if __name__ == "__main__":
    main()
