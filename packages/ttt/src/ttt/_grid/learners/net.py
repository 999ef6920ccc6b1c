"""A small recurrent convolutional net, trained on one task from scratch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttt._grid.learners.adam import FlatAdam, flatten
from ttt._grid.learners.encoding import TaskEncoding
from ttt._grid.work import Work
from ttt.values import Candidate, Grid

Pick = tuple[int, int, npt.NDArray[np.int64]]
"""One grid as the net sees it: the input's index, the pose, the slot that stands for each slot."""

CHANNELS = 32
ROUNDS = 8
CELLS = 1400
"""Cells of one training batch, padding included."""
DROP = 0.3
RATE = 2e-3
SNAPSHOTS = (0.55, 0.75, 0.9, 1.0)
"""Shares of the training after which the averaged weights vote."""
SHARE_OF_TIME = 0.92
"""Share of the remaining time for training; the last vote takes the rest."""


@dataclass(slots=True)
class Verdict:
    """Votes of the snapshots so far.

    Args:
        votes: Per test the weight of each predicted grid.
        grids: Per test the grids by key.
        fit: Share of training pairs reproduced exactly, in the last snapshot.
        agreement: Per test the share of all votes that the first grid has.
    """

    votes: list[dict[bytes, float]]
    grids: list[dict[bytes, Grid]]
    fit: float = 0.0
    agreement: list[float] = field(default_factory=list)


class Block(nn.Module):
    """One round of the net: local, line-wise, global and swept-along context, then a gated update.

    State is channels-last: batch x height x width x channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.local = nn.Conv2d(width, width, 3, padding=1)
        self.sweep = nn.Linear(width, width)
        self.mix = nn.Linear(6 * width, 2 * width)
        self.out = nn.Linear(2 * width, 2 * width)
        self.width = width
        with torch.no_grad():
            self.out.bias[:width] = -1.0

    def forward(self, state: Tensor, inside: Tensor) -> Tensor:
        """Return the next state, zero outside the grids.

        Args:
            state: (batch, height, width, channels).
            inside: (batch, height, width, 1), 1 inside the grid and 0 in the padding.
        """
        x = self.norm(state) * inside
        near = F.relu(self.local(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        low = x - 10.0 * (1.0 - inside)
        row, column = low.amax(dim=2, keepdim=True), low.amax(dim=1, keepdim=True)
        mean = x.sum(dim=(1, 2), keepdim=True) / inside.sum(dim=(1, 2), keepdim=True)
        up, down, left, right = (self.sweep(x) - 10.0 * (1.0 - inside)).chunk(4, dim=-1)
        swept = torch.cat(
            [
                up.cummax(dim=1).values,
                down.flip(1).cummax(dim=1).values.flip(1),
                left.cummax(dim=2).values,
                right.flip(2).cummax(dim=2).values.flip(2),
            ],
            dim=-1,
        )
        # What is the same along a line, or everywhere, is multiplied once and not for every cell.
        w = self.width
        cells, rows, columns, whole = torch.split(self.mix.weight, [3 * w, w, w, w], dim=1)
        hidden = F.linear(torch.cat([x, near, swept], dim=-1), cells, self.mix.bias)
        hidden = F.relu(hidden + F.linear(row, rows) + (F.linear(column, columns) + F.linear(mean, whole)))
        gate, candidate = self.out(hidden).split(self.width, dim=-1)
        gate = torch.sigmoid(gate)
        new: Tensor = ((1 - gate) * state + gate * 2 * torch.tanh(candidate)) * inside
        return new


class Net(nn.Module):
    """Cells in, colour scores out, after some rounds of one shared block."""

    def __init__(self, inputs: int, slots: int, width: int = CHANNELS) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.block = Block(width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, slots)

    def forward(self, x: Tensor, inside: Tensor, rounds: int, keep: int = 1) -> list[Tensor]:
        """Return scores (batch, height, width, slots) after each of the last `keep` rounds."""
        entered = self.enter(x) * inside
        state = entered
        scores = []
        for i in range(rounds):
            state = self.block(state, inside) + 0.2 * entered
            if i >= rounds - keep:
                scores.append(self.head(self.norm(state)))
        return scores


def undone(grid: npt.NDArray[np.generic], pose: int) -> npt.NDArray[np.generic]:
    """Invert one of the eight poses."""
    return np.rot90(grid, -pose) if pose < 4 else np.rot90(grid[:, ::-1], -(pose - 4))


def train(encoding: TaskEncoding, seed: int, work: Work, steps: int) -> Iterator[Verdict]:
    """Train on the pairs and vote over snapshots and poses; one work unit is one step.

    Args:
        encoding: The task.
        seed: Of all randomness.
        work: Counts work and says when to stop.
        steps: Length of the schedule; the learning rate ends there, or with the time that `work` knows to be left.
            Training ends early once two snapshots in a row fit all pairs and all their views agree.

    Yields:
        The votes after each snapshot.
    """
    settled = 0
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        net, judge = Net(encoding.width, encoding.slots), Net(encoding.width, encoding.slots).eval()
    adam, judged = FlatAdam(net), flatten(judge)
    verdict = Verdict([{} for _ in range(encoding.tests)], [{} for _ in range(encoding.tests)])
    step, gone, taken = 0, 0.0, 0
    allowed = work.seconds_left() if work.seconds_left is not None else math.inf
    while gone < 1.0:
        if work.over:
            return
        step += 1
        gone = step / steps
        if work.seconds_left is not None and not math.isinf(allowed):
            gone = min(1.0, max(gone, (1 - work.seconds_left() / allowed) / SHARE_OF_TIME))
        rate = RATE * min(1.0, step / 20) * min(1.0, 0.05 + 0.95 * 2 * (1 - gone))
        x, inside, wanted = _tensors(encoding, *_draw(encoding, rng))
        rounds = ROUNDS + int(rng.integers(-1, 2))
        loss = torch.zeros(())
        for scores in net(x, inside, rounds, keep=3):
            loss = loss + F.cross_entropy(scores.reshape(-1, encoding.slots), wanted.reshape(-1), ignore_index=-1)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step(rate, keep=min(0.97, 1 - 1 / (1 + step / 4)))
        work.spend()
        if gone >= SNAPSHOTS[taken]:
            taken += 1
            judged.copy_(adam.average)
            _vote(judge, encoding, verdict, gone)
            yield verdict
            settled = settled + 1 if verdict.fit == 1.0 and min(verdict.agreement) > 0.999 else 0
            if settled == 2:
                return


def _tensors(
    encoding: TaskEncoding, picks: Sequence[Pick], keep: npt.NDArray[np.float32] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, inside masks and wanted slots of some views."""
    shown, wanted = encoding.batch(picks, keep)
    x = torch.from_numpy(shown)
    return x, x[..., encoding.inside : encoding.inside + 1], torch.from_numpy(wanted)


def _draw(encoding: TaskEncoding, rng: np.random.Generator) -> tuple[list[Pick], npt.NDArray[np.float32]]:
    """Draw a batch of random pairs, poses and colours, with random features hidden."""
    picks: list[Pick] = []
    tall, wide, count = 0, 0, 0
    while True:
        i = int(rng.integers(len(encoding.outputs)))
        k = int(rng.integers(8)) if rng.random() < 0.75 else 0
        to = np.arange(encoding.slots)
        if len(encoding.free) > 1 and rng.random() < 0.8:
            to[encoding.free] = rng.permutation(encoding.free)
        h, w = encoding.posed[i][k][0].shape
        tall, wide = max(tall, h), max(wide, w)
        if (picks and tall * wide * (count + 1) > CELLS) or count >= 32:
            break
        picks.append((i, k, to))
        count += 1
    features = encoding.posed[0][0][1].shape[-1]
    keep = (rng.random((count, features)) >= DROP).astype(np.float32)
    return picks, keep


@torch.no_grad()
def _vote(net: Net, encoding: TaskEncoding, verdict: Verdict, progress: float) -> None:
    plain = np.arange(encoding.slots)
    right = 0
    for i, out in enumerate(encoding.outputs):
        x, inside, _ = _tensors(encoding, [(i, 0, plain)])
        right += int(np.array_equal(encoding.colours[net(x, inside, ROUNDS)[0][0].argmax(-1).numpy()], out))
    verdict.fit = right / len(encoding.outputs)
    verdict.agreement = []
    for t in range(len(verdict.votes)):
        i = len(encoding.outputs) + t
        for k in range(8):
            x, inside, _ = _tensors(encoding, [(i, k, plain)])
            share = net(x, inside, ROUNDS)[0][0].softmax(-1)
            top, slot = share.max(-1)
            sure = math.exp(float(top.clamp_min(1e-9).log().sum()))
            grid = np.ascontiguousarray(undone(encoding.colours[slot.numpy()], k), dtype=np.uint8)
            key = bytes(grid.shape) + grid.tobytes()
            weight = (0.05 + sure) * (0.2 + verdict.fit) * progress * (1.5 if k == 0 else 1.0)
            verdict.votes[t][key] = verdict.votes[t].get(key, 0.0) + weight
            verdict.grids[t][key] = grid
        values = verdict.votes[t].values()
        verdict.agreement.append(max(values) / sum(values))


def candidates(verdict: Verdict) -> list[list[Candidate]]:
    """Return the net's answers per test with train fit and agreement."""
    result = []
    base = 0.75 if verdict.fit == 1.0 else 0.5 if verdict.fit >= 0.7 else 0.04
    for votes, grids, agreement in zip(verdict.votes, verdict.grids, verdict.agreement, strict=True):
        total = sum(votes.values())
        ranked = sorted(votes, key=lambda k: -votes[k])[:3]
        why = f"net, fits {verdict.fit:.0%} of the pairs, {agreement:.0%} of the votes agree"
        result.append(
            [
                Candidate(
                    grids[k],
                    base * (0.3 + 0.7 * agreement) * votes[k] / max(votes.values())
                    if i == 0
                    else base * 0.5 * votes[k] / total,
                    "net",
                    why,
                )
                for i, k in enumerate(ranked)
            ]
        )
    return result
