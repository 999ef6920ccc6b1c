"""Paints a number of apples, with its own numpy."""

from __future__ import annotations

import numpy

import xfer

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SIDE = 512


class Extension:
    """Makes pictures and hands them over: the process that reads one takes over its memory."""

    def __init__(self):
        """Make a pool for the pictures."""
        self.pool = xfer.Pool("64MiB")

    def picture(self, answer):
        """Return a handle to a picture with as many apples as the first word of the answer says."""
        count = NUMBERS.index(answer.split()[0])
        pixels = numpy.zeros((SIDE, SIDE), numpy.uint8)
        step = SIDE // 8
        for number in range(count):
            row, column = divmod(number, 4)
            pixels[row * step + 8 : row * step + 40, column * step + 8 : column * step + 40] = 255
        return self.pool.put(pixels, consume=True)
