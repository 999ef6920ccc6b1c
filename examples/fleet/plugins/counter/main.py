"""Looks at a photo of apples on two plates, with its own numpy, and asks how many there are in all."""

from __future__ import annotations

import numpy

import xfer

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six"]


class Extension:
    """Reads photos by handle; nothing of them is copied."""

    def question(self, photo):
        """Return the story of the two plates, without its last word."""
        with xfer.open(photo) as pixels:
            side = pixels.shape[0]
            cells = pixels.reshape(8, side // 8, 8, side // 8).max((1, 3)) > 0
        left, right = int(cells[:, :4].sum()), int(cells[:, 4:].sum())
        return f"Anna has {NUMBERS[left]} . Anna gets {NUMBERS[right]} more . Now Anna has"

    def version(self):
        """Return the version of numpy in this process."""
        return numpy.__version__
