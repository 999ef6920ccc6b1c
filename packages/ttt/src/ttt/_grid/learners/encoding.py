"""A task as arrays for the net: every input in all eight poses, its colours as slots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ttt._grid.geometry import poses
from ttt.values import Grid

FLAGS = (
    "inside or outside",
    "lies on the border",
    "its one-colour piece is one with the most cells",
    "its one-colour piece is one with the fewest cells",
    "its one-colour piece's rank by number of cells",
    "its one-colour piece's number of cells",
    "its one-colour piece's number of empty cells in its box",
    "its one-colour piece's number of holes",
    "its one-colour piece's number of borders touched",
    "its one-colour piece's number of things of its shape",
    "its object's rank by number of cells",
    "its object's number of cells",
    "its object's number of colours",
    "its object's number of things of its shape",
    "background region's size",
    "background region is a rectangle",
    "row parity",
    "column parity",
    "chessboard parity",
    "ring from the border",
    "its row is of one colour",
    "its column is of one colour",
    "lies in the box of an object",
    "has the rarest drawn colour",
)
"""The cell features in the net's input, one scaled number each."""


class TaskEncoding:
    """All inputs of a task as arrays in all eight poses, colours as slots.

    Making one loads the search; a process that unpickles one does not load it.

    Args:
        inputs: One grid per input, training first, each of its output's size.
        outputs: The training outputs.
        extras: Per input further grids of the same size, encoded as colours too.
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
        # Imported here: they load scipy, which a process that unpickles a finished encoding does without.
        from ttt._grid.features import FEATURES
        from ttt._grid.scene import Scene

        scene = Scene(grid)
        parts = [FEATURES[n].measure(scene) for n in FLAGS]
        return np.stack([np.zeros(grid.shape) if p is None else p.astype(float) for p in parts], axis=-1)

    @property
    def slots(self) -> int:
        """Number of colours in the task."""
        return len(self.colours)

    @property
    def tests(self) -> int:
        """Number of test inputs."""
        return len(self.inputs) - len(self.outputs)

    @property
    def inside(self) -> int:
        """Index of the number of a cell that is 1 inside the grid and 0 in the padding."""
        return self.slots * self.layers

    @property
    def width(self) -> int:
        """Numbers per cell in the net's input."""
        return self.inside + 1 + 8 + int(self.posed[0][0][1].shape[-1])

    def batch(
        self,
        picks: Sequence[tuple[int, int, npt.NDArray[np.int64]]],
        keep: npt.NDArray[np.float32] | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return inputs (views, height, width, numbers) and wanted slots (-1 outside), padded to one size.

        Args:
            picks: Per view the index of the input, the pose, and the slot that stands for each slot.
            keep: Per view and feature the factor 0 or 1, None for all.
        """
        shapes = [self.posed[i][k][0].shape for i, k, _ in picks]
        h, w = max(s[0] for s in shapes), max(s[1] for s in shapes)
        x = np.zeros((len(picks), h, w, self.width), dtype=np.float32)
        wanted = np.full((len(picks), h, w), -1, dtype=np.int64)
        eye = np.eye(self.slots, dtype=np.float32)
        end = self.inside
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
        return x, wanted
