"""A small recurrent convolutional net trained on one task from scratch; knows nothing of the search and the trees."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttt.grid.adam import FlatAdam, flatten
from ttt.grid.answers import Candidate, Grid
from ttt.grid.features import FEATURES
from ttt.grid.scene import Scene, poses
from ttt.grid.work import Work

CHANNELS = 32
ROUNDS = 8
CELLS = 1400
"""Cells of one training batch, padding included."""
DROP = 0.3
RATE = 2e-3
SNAPSHOTS = (0.55, 0.75, 0.9, 1.0)
"""Shares of the training after which the averaged weights vote."""
SHARE_OF_TIME = 0.92
"""Of the time that is left the training takes so much, the last vote the rest."""

FLAGS = (
    "inside or outside",
    "lying on the border",
    "its one-colour piece having the most number of cells",
    "its one-colour piece having the least number of cells",
    "its one-colour piece's rank by number of cells",
    "its one-colour piece's number of cells",
    "its one-colour piece's empty cells in its box",
    "its one-colour piece's holes",
    "its one-colour piece's touching the border",
    "its one-colour piece's repeats of its shape",
    "its object's rank by number of cells",
    "its object's number of cells",
    "its object's number of colours",
    "its object's repeats of its shape",
    "background region's size",
    "background region's being a rectangle",
    "row parity",
    "column parity",
    "chessboard parity",
    "ring from the border",
    "its row's being of one colour",
    "its column's being of one colour",
    "lying in the box of an object",
    "having the rarest drawn colour",
)
"""The cell features that the net is shown, one scaled number each."""


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
        """The next state, zero outside the grids.

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
        """Scores (batch, height, width, slots) after each of the last `keep` rounds."""
        entered = self.enter(x) * inside
        state = entered
        scores = []
        for i in range(rounds):
            state = self.block(state, inside) + 0.2 * entered
            if i >= rounds - keep:
                scores.append(self.head(self.norm(state)))
        return scores


class Deck:
    """All inputs of a task as tensors in all eight poses, colours as slots.

    Args:
        inputs: One grid per input, training first, each of its output's size.
        outputs: The training outputs.
        extras: Per input further views of the same size, shown as colours too.
    """

    def __init__(
        self, inputs: Sequence[Grid], outputs: Sequence[Grid], extras: Sequence[Sequence[Grid]] | None = None
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        extras = extras or [[] for _ in inputs]
        self.layers = 1 + len(extras[0])
        everything = [*inputs, *outputs, *(g for e in extras for g in e)]
        colours = np.unique(np.concatenate([g.ravel() for g in everything]))
        self.colours = colours
        self.slot = np.zeros(10, dtype=np.int64)
        self.slot[colours] = np.arange(len(colours))
        fixed = set(range(10))
        for a, b in zip(inputs, outputs, strict=False):
            fixed &= set(np.unique(a).tolist()) | set(np.unique(b).tolist())
        fixed.add(0)
        self.free = np.array([int(self.slot[c]) for c in colours if int(c) not in fixed], dtype=np.int64)
        raw = [self._features(g) for g in inputs]
        scale = np.maximum(1.0, np.stack([np.abs(r).max(axis=(0, 1)) for r in raw]).max(axis=0))
        self.posed: list[list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]] = []
        self.layered = [[np.stack(p) for p in zip(*(poses(self.slot[g]) for g in e), strict=True)] for e in extras]
        self.wanted: list[list[npt.NDArray[np.int64]]] = []
        for i, (g, r) in enumerate(zip(inputs, raw, strict=True)):
            planes = (np.log1p(r) / np.log1p(scale)).astype(np.float32)
            moved = [
                np.stack(p, axis=-1)
                for p in zip(*(poses(planes[..., k]) for k in range(planes.shape[-1])), strict=True)
            ]
            self.posed.append(list(zip(poses(self.slot[g]), moved, strict=True)))
            if i < len(outputs):
                self.wanted.append(list(poses(self.slot[outputs[i]])))

    @staticmethod
    def _features(grid: Grid) -> npt.NDArray[np.float64]:
        scene = Scene(grid)
        parts = [FEATURES[n].measure(scene) for n in FLAGS]
        return np.stack([np.zeros(grid.shape) if p is None else p.astype(float) for p in parts], axis=-1)

    @property
    def slots(self) -> int:
        """Number of colours in the task."""
        return len(self.colours)

    @property
    def width(self) -> int:
        """Numbers per cell that the net is given."""
        return self.slots * self.layers + 1 + 8 + int(self.posed[0][0][1].shape[-1])

    def batch(
        self,
        picks: Sequence[tuple[int, int, npt.NDArray[np.int64]]],
        keep: npt.NDArray[np.float32] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, inside masks and wanted slots (-1 outside) of some views, padded to one size.

        Args:
            picks: Per view the index of the input, the pose and the slot each slot is shown as.
            keep: Per view and feature the factor 0 or 1, None for all.
        """
        shapes = [self.posed[i][k][0].shape for i, k, _ in picks]
        h, w = max(s[0] for s in shapes), max(s[1] for s in shapes)
        x = np.zeros((len(picks), h, w, self.width), dtype=np.float32)
        wanted = np.full((len(picks), h, w), -1, dtype=np.int64)
        eye = np.eye(self.slots, dtype=np.float32)
        end = self.slots * self.layers
        for n, (i, k, to) in enumerate(picks):
            g, f = self.posed[i][k]
            gh, gw = g.shape
            x[n, :gh, :gw, : self.slots] = eye[to[g]]
            for layer in range(1, self.layers):
                part = slice(layer * self.slots, (layer + 1) * self.slots)
                x[n, :gh, :gw, part] = eye[to[self.layered[i][k][layer - 1]]]
            x[n, :gh, :gw, end] = 1.0
            x[n, :gh, :gw, end + 1 + k] = 1.0
            x[n, :gh, :gw, end + 9 :] = f if keep is None else f * keep[n]
            if i < len(self.wanted):
                wanted[n, :gh, :gw] = to[self.wanted[i][k]]
        tensor = torch.from_numpy(x)
        return tensor, tensor[..., end : end + 1], torch.from_numpy(wanted)


def undone(grid: npt.NDArray[np.generic], pose: int) -> npt.NDArray[np.generic]:
    """The inverse of one of the eight poses."""
    return np.rot90(grid, -pose) if pose < 4 else np.rot90(grid[:, ::-1], -(pose - 4))


def train(
    inputs: Sequence[Grid],
    outputs: Sequence[Grid],
    seed: int,
    work: Work,
    steps: int,
    extras: Sequence[Sequence[Grid]] | None = None,
) -> Iterator[Verdict]:
    """Train on the pairs and vote over snapshots and poses; one work unit is one step.

    Args:
        inputs: All inputs, or one view of each, training first; each has its output's size.
        outputs: The training outputs.
        seed: Of all randomness.
        work: Counts work and says when to stop.
        steps: Length of the schedule; the learning rate ends there, or with the time that `work` knows to be left.
            Training ends early once two snapshots in a row fit all pairs and all their views agree.
        extras: Per input further views of the same size.

    Yields:
        The votes after each snapshot.
    """
    deck = Deck(inputs, outputs, extras)
    settled = 0
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        net, judge = Net(deck.width, deck.slots), Net(deck.width, deck.slots).eval()
    adam, judged = FlatAdam(net), flatten(judge)
    tests = len(inputs) - len(outputs)
    verdict = Verdict([{} for _ in range(tests)], [{} for _ in range(tests)])
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
        x, inside, wanted = deck.batch(*_draw(deck, rng))
        rounds = ROUNDS + int(rng.integers(-1, 2))
        loss = torch.zeros(())
        for scores in net(x, inside, rounds, keep=3):
            loss = loss + F.cross_entropy(scores.reshape(-1, deck.slots), wanted.reshape(-1), ignore_index=-1)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step(rate, keep=min(0.97, 1 - 1 / (1 + step / 4)))
        work.spend()
        if gone >= SNAPSHOTS[taken]:
            taken += 1
            judged.copy_(adam.average)
            _vote(judge, deck, verdict, gone)
            yield verdict
            settled = settled + 1 if verdict.fit == 1.0 and min(verdict.agreement) > 0.999 else 0
            if settled == 2:
                return


def _draw(
    deck: Deck, rng: np.random.Generator
) -> tuple[list[tuple[int, int, npt.NDArray[np.int64]]], npt.NDArray[np.float32]]:
    """A batch of random pairs, poses and colours with random features hidden."""
    picks: list[tuple[int, int, npt.NDArray[np.int64]]] = []
    tall, wide, count = 0, 0, 0
    while True:
        i = int(rng.integers(len(deck.outputs)))
        k = int(rng.integers(8)) if rng.random() < 0.75 else 0
        to = np.arange(deck.slots)
        if len(deck.free) > 1 and rng.random() < 0.8:
            to[deck.free] = rng.permutation(deck.free)
        h, w = deck.posed[i][k][0].shape
        tall, wide = max(tall, h), max(wide, w)
        if (picks and tall * wide * (count + 1) > CELLS) or count >= 32:
            break
        picks.append((i, k, to))
        count += 1
    features = deck.posed[0][0][1].shape[-1]
    keep = (rng.random((count, features)) >= DROP).astype(np.float32)
    return picks, keep


@torch.no_grad()
def _vote(net: Net, deck: Deck, verdict: Verdict, progress: float) -> None:
    plain = np.arange(deck.slots)
    right = 0
    for i, out in enumerate(deck.outputs):
        x, inside, _ = deck.batch([(i, 0, plain)])
        right += int(np.array_equal(deck.colours[net(x, inside, ROUNDS)[0][0].argmax(-1).numpy()], out))
    verdict.fit = right / len(deck.outputs)
    verdict.agreement = []
    for t in range(len(verdict.votes)):
        i = len(deck.outputs) + t
        for k in range(8):
            x, inside, _ = deck.batch([(i, k, plain)])
            share = net(x, inside, ROUNDS)[0][0].softmax(-1)
            top, slot = share.max(-1)
            sure = math.exp(float(top.clamp_min(1e-9).log().sum()))
            grid = np.ascontiguousarray(undone(deck.colours[slot.numpy()], k), dtype=np.uint8)
            key = bytes(grid.shape) + grid.tobytes()
            weight = (0.05 + sure) * (0.2 + verdict.fit) * progress * (1.5 if k == 0 else 1.0)
            verdict.votes[t][key] = verdict.votes[t].get(key, 0.0) + weight
            verdict.grids[t][key] = grid
        values = verdict.votes[t].values()
        verdict.agreement.append(max(values) / sum(values))


def candidates(verdict: Verdict) -> list[list[Candidate]]:
    """The net's answers per test with train fit and agreement."""
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
