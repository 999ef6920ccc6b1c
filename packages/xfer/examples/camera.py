"""A camera and three readers that know only its name: two want the newest picture, one wants every picture.

Run: python camera.py [--pictures 30]
"""

import argparse
import subprocess
import sys
import time

import numpy as np

import xfer

NAME = "example-camera"


def read(every: bool) -> None:
    """Look at pictures until the camera publishes an empty one."""
    count = 0
    with xfer.Topic(NAME, keep=4).subscribe(every=every) as pictures:
        print("ready", flush=True)
        for picture in pictures:
            if not picture.any():
                break
            count += 1
    print(f"{'every' if every else 'newest'}: {count} pictures", flush=True)


def main() -> None:
    """Start the readers, and publish pictures for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=30, help="how many pictures (default 30)")
    parser.add_argument("--read", choices=["every", "newest"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read(arguments.read == "every")
        return
    with xfer.Topic(NAME, keep=4) as camera:
        readers = [
            subprocess.Popen([sys.executable, __file__, "--read", kind], stdout=subprocess.PIPE, text=True)
            for kind in ("newest", "newest", "every")
        ]
        for reader in readers:
            reader.stdout.readline()
        picture = np.ones((480, 640), np.uint8)
        for _ in range(arguments.pictures):
            camera.publish(picture, timeout=10)
            time.sleep(0.001)
        camera.publish(np.zeros((1, 1), np.uint8), timeout=10)
        for reader in readers:
            print(reader.communicate()[0].strip())
        camera.remove()


if __name__ == "__main__":
    main()
