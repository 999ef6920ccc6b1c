"""Clients that send photos of apples, and check every answer against what each version says when it is asked alone."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from gateway import post
from numpy.typing import NDArray
from trial.model import NUMBERS, SUMS, prompt

import xfer
from ternary import llm

SIDE = 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request.

    Attributes:
        at: When it was sent, by the monotonic clock.
        seconds: How long it took.
        version: The version that answered, as the answer says.
        error: The type of the error instead.
        whole: Whether text and picture are what that version answers when it is asked alone.
        right: Whether the sum is right.
    """

    at: float
    seconds: float
    version: str = ""
    error: str = ""
    whole: bool = False
    right: bool = False


def photo(left: int, right: int) -> torch.Tensor:
    """Return a photo with so many apples on the left and on the right plate."""
    pixels = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    step = SIDE // 8
    for number in [*range(left), *range(32, 32 + right)]:
        row, column = number % 8, 4 * (number // 32) + number % 32 // 8
        pixels[row * step + 20 : row * step + 100, column * step + 20 : column * step + 100] = 255
    return pixels


def answers_alone(files: list[Path]) -> dict[str, dict[tuple[int, int], str]]:
    """Return what each version answers to each sum."""
    found = {}
    for file in files:
        with llm.load(file, threads=1) as model:
            found[file.stem] = {s: model.generate(prompt(*s), max_tokens=2).text() for s in SUMS}
    return found


class Clients:
    """Threads that ask until they are stopped.

    Args:
        port: The gateway's port.
        files: The versions of the model.
        count: How many threads.
    """

    def __init__(self, port: int, files: list[Path], count: int) -> None:
        self.outcomes: list[Outcome] = []
        self._port, self._expected, self._stopping = port, answers_alone(files), threading.Event()
        self.picture: NDArray[np.uint8] | None = None
        self._pool = xfer.Pool("256MiB")
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[Outcome]:
        """Wait for the last answers and return all outcomes."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        return self.outcomes

    def close(self) -> None:
        """Stop, and free the memory of the photos."""
        self.stop()
        self._pool.close()

    def _run(self, number: int) -> None:
        while not self._stopping.is_set():
            number += 7
            self.outcomes.append(self.ask(*SUMS[number % len(SUMS)]))
            time.sleep(0.01)

    def ask(self, left: int, right: int, code: int = 0) -> Outcome:
        """Send one photo and check the answer.

        Args:
            left: Apples on the left plate.
            right: Apples on the right plate.
            code: The value of the last pixel.
        """
        pixels = photo(left, right)
        pixels[-1, -1] = code
        begin = time.monotonic()
        handle = self._pool.put(pixels)
        try:
            body = {"model": "sums", "photo": bytes(handle).hex(), "max_tokens": 2}
            answer, _ = post(self._port, body, timeout=60)
            seconds = time.monotonic() - begin
            if "error" in answer:
                return Outcome(begin, seconds, error=f"{answer['error']['type']}: {answer['error']['message']}")
            picture = xfer.get(bytes.fromhex(answer["picture"]))
        except (OSError, HTTPException, ValueError) as error:  # errors of xfer are among them
            return Outcome(begin, time.monotonic() - begin, error=f"{type(error).__name__}: {error}")
        finally:
            self._pool.release(handle)
        text, version = answer["choices"][0]["text"], answer["model"]
        cells = picture.reshape(8, picture.shape[0] // 8, 8, picture.shape[0] // 8).max((1, 3))
        said = NUMBERS.index(text.split()[0])
        if (left, right) == (2, 3):
            self.picture = picture.copy()
        whole = text == self._expected[version][left, right] and int((cells > 0).sum()) == said
        return Outcome(begin, seconds, version, whole=whole, right=said == left + right)
