"""Hundreds of reloads while two publishers and a reader are killed at random: no mixed answer, no older one, no leak.

ZEROCOPY_RELOADS sets how many (500).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zerocopy

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
RELOADS = int(os.environ.get("ZEROCOPY_RELOADS", "500"))


class Twice(nn.Module):
    """One number, in every element of two weights and in a buffer."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.full((100_000,), float(number)))
        self.second = nn.Parameter(torch.full((70_000,), float(number)))
        self.register_buffer("number", torch.tensor(number))

    def forward(self) -> set[int]:
        """Return the numbers that are in it."""
        with torch.no_grad():
            first, second = self.first, self.second
            return {int(x) for x in (first.min(), first.max(), second.min(), second.max(), self.number)}


def forked(act: Callable[[], None]) -> int:
    """Run a function in a child that ends with it."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        except BaseException:  # of any type: it is shown, and the status tells
            traceback.print_exc()
        os._exit(1)
    return child


def publish_on(folder: Path, seed: int) -> None:
    """Publish one version after the other, and note each number's version."""
    random.seed(seed)
    with (folder.parent / f"published-{os.getpid()}").open("w", buffering=1) as note:
        while True:
            number = random.randrange(1 << 20)
            ref = zerocopy.publish(Twice(number), name="net", directory=folder)
            note.write(f"{ref.version} {number}\n")
            time.sleep(0.005)


def anonymous() -> int:
    """Return the bytes of this process's own memory."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def read_from(folder: Path, reloads: int, answers: Path) -> None:
    """Follow the name until so many versions were seen and enough processes killed; write what was seen to a file."""
    enough = folder.parent / "enough"
    while True:
        try:
            live = zerocopy.follow("net", directory=folder)
            break
        except zerocopy.ZerocopyError:
            time.sleep(0.01)
    seen: list[tuple[int, int]] = []
    early, end = 0, time.monotonic() + 600
    while (len(seen) < reloads or not enough.exists()) and time.monotonic() < end:
        ref, model = live.get()
        numbers = model()
        assert len(numbers) == 1, f"a mixed answer: {numbers}"
        assert not seen or ref.version >= seen[-1][0], f"version {ref.version} after {seen[-1][0]}"
        if not seen or ref.version > seen[-1][0]:
            seen.append((ref.version, numbers.pop()))
            del model
            if len(seen) == reloads // 5:
                early = anonymous()
                files = len(os.listdir("/proc/self/fd"))
    grown = anonymous() - early
    answers.write_text(json.dumps([seen, grown, len(os.listdir("/proc/self/fd")) - files]))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_reloads_with_random_kills(tmp_path: Path, eventually: Any) -> None:
    """Every version that a reader saw was published, whole and in order; memory stays flat; nothing is left."""
    random.seed(1)
    torch.set_num_threads(1)
    folder, answers = tmp_path / "segments", tmp_path / "answers"
    publishers = [forked(lambda seed=seed: publish_on(folder, seed)) for seed in range(2)]
    reader = forked(lambda: read_from(folder, RELOADS, answers))
    second = forked(lambda: read_from(folder, 1 << 30, tmp_path / "unused"))
    kills, most, ended = 0, 0, 0
    try:
        while ended == 0:
            time.sleep(random.uniform(0.1, 0.6))
            ended, status = os.waitpid(reader, os.WNOHANG)
            most = max(most, _room(folder))
            index = random.randrange(3)
            victim = second if index == 2 else publishers[index]
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            kills += 1
            if kills > 5:
                (tmp_path / "enough").touch()
            if index == 2:
                second = forked(lambda: read_from(folder, 1 << 30, tmp_path / "unused"))
            else:
                publishers[index] = forked(lambda seed=kills + 10: publish_on(folder, seed))
    finally:
        for child in (*publishers, second, *([reader] if ended == 0 else [])):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert status == 0
    seen, grown, files = json.loads(answers.read_text())
    published: dict[int, int] = {}
    for note in tmp_path.glob("published-*"):
        for line in note.read_text().splitlines():
            version, number = map(int, line.split())
            assert version not in published, f"version {version} was given out twice"
            published[version] = number
    unknown = [version for version, number in seen if published.get(version, number) != number]
    assert unknown == []
    assert len(seen) >= RELOADS
    assert kills > 5
    assert grown < 8 << 20
    assert files <= 2
    assert most < 40 << 20  # of models of 0.7 MiB
    assert eventually(lambda: list(folder.iterdir()) == [], 60), list(folder.iterdir())


def _room(folder: Path) -> int:
    """What the segments take, in bytes; other processes remove some while this one counts."""
    taken = 0
    for path in folder.glob("*.zc*"):
        with contextlib.suppress(FileNotFoundError):
            taken += path.stat().st_blocks * 512
    return taken
