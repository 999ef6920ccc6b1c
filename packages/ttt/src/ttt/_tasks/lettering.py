"""A small typeface for labels in pictures: letters of three by five dots."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROWS = {
    "a": "010101111101101", "b": "110101110101110", "c": "011100100100011", "d": "110101101101110",
    "e": "111100110100111", "f": "111100110100100", "g": "011100101101011", "h": "101101111101101",
    "i": "111010010010111", "j": "001001001101010", "k": "101101110101101", "l": "100100100100111",
    "m": "101111111101101", "n": "110101101101101", "o": "010101101101010", "p": "110101110100100",
    "q": "010101101110011", "r": "110101110101101", "s": "011100010001110", "t": "111010010010010",
    "u": "101101101101111", "v": "101101101101010", "w": "101101111111101", "x": "101101010101101",
    "y": "101101010010010", "z": "111001010100111", "0": "111101101101111", "1": "010110010010111",
    "2": "110001010100111", "3": "110001010001110", "4": "101101111001001", "5": "111100110001110",
    "6": "011100111101111", "7": "111001010010010", "8": "111101111101111", "9": "111101111001110",
    ",": "000000000010100", "-": "000000111000000", ".": "000000000000010", "%": "101001010100101",
}  # fmt: skip
"""Each letter's dots, row by row."""
WIDTH, HEIGHT = 3, 5


def lettered(text: str, scale: int = 2) -> npt.NDArray[np.bool_]:
    """Return the dots of a line of text as (height, width), True where there is ink; unknown characters are blank."""
    letters = []
    for character in text.lower():
        dots = ROWS.get(character, "0" * WIDTH * HEIGHT)
        letter = np.array([d == "1" for d in dots]).reshape(HEIGHT, WIDTH)
        letters.append(np.pad(letter, ((0, 0), (0, 1))))
    line = np.concatenate(letters, axis=1) if letters else np.zeros((HEIGHT, 1), bool)
    return line.repeat(scale, 0).repeat(scale, 1)
