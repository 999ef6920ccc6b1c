"""Partial results laid over each other until every training cell is explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttt._grid.compose.core import library

Colours = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int32]

MOST_LAYERS = 5
"""Layers of a program, the one at the bottom included."""
STARTS = 40
"""How many first layers are tried."""
MOST_BY_COVER = 10
"""Layers of a program whose layers were chosen by what they cover alone."""
STARTS_BY_COVER = 3
"""How many first layers are tried for it."""
DEAREST_BY_COVER = 150
"""The dearest such program: of 9 dearer ones on develop tasks none was right, of 27 others 12."""
CHEAP = (15, 25)
"""Such layers are looked for among images of at most these costs first, then among all: in tenths of an operation."""
LAYER_COST = 6
"""Cost of a layer besides that of its image, in tenths of a plain operation."""
OWN, DRAWN, EMPTY = range(3)
"""How a layer paints: its own colours, one colour where it is drawn, or one colour where it is empty."""

Layer = tuple[int, int, int]
"""An image's number, how it is used, and the colour that it paints."""


@dataclass(frozen=True, slots=True)
class Layered:
    """Layers that make every training output.

    Args:
        layers: From the top to the bottom; the last one may be an image as it is.
        whole: Whether the last one is.
        colours: The colour of each cell, training first.
        cost: Length of its description, in tenths of a plain operation.
    """

    layers: tuple[Layer, ...]
    whole: bool
    colours: Colours
    cost: int


@dataclass(frozen=True, slots=True)
class _Rule:
    """How layers are chosen.

    Args:
        images: How many of the images, the cheapest first.
        weight: What the cells that a layer covers are divided by, for each of these.
        most: Layers of a program, the one at the bottom included.
        starts: How many first layers are tried.
    """

    images: int
    weight: Ints
    most: int
    starts: int


class Stack:
    """Images of the outputs' sizes, and the layers that can be laid with them.

    Args:
        colours: One row for each image, cheapest first; training cells first.
        cost: The cost of each, in tenths of a plain operation.
        target: The colours of all training cells.
        pair: For each training cell the number of its pair, ascending.
        compiled: Whether to use the compiled core where there is one.
    """

    def __init__(self, colours: Colours, cost: Ints, target: Colours, pair: Ints, compiled: bool = True) -> None:
        self.colours, self.cost, self.target = np.ascontiguousarray(colours), cost, np.ascontiguousarray(target)
        self.n, self.pairs = len(target), int(pair[-1]) + 1
        self._core = library() if compiled else None
        # The cells of each pair start at a word of their own.
        sizes = np.bincount(pair, minlength=self.pairs)
        words = -(-sizes // 64)
        self._word = np.concatenate([[0], np.cumsum(words)]).astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._bit = (np.arange(self.n) - starts[pair] + 64 * self._word[pair]).astype(np.int32)
        self._words = int(self._word[-1])
        self.open = self._to_bits(np.ones((1, self.n), dtype=bool))[0]
        self._wanted = self._to_bits(target == np.arange(10)[:, None])
        if self._core is None:
            known = self.colours[:, : self.n]
            self._drawn, self._right = self._to_bits(known != 0), self._to_bits(known == target)
        else:
            self._drawn = np.zeros((len(colours), self._words), dtype=np.uint64)
            self._right = np.zeros((len(colours), self._words), dtype=np.uint64)
            self._core.layers_bits(
                self.colours.ctypes.data,
                len(colours),
                self.colours.shape[1],
                self.target.ctypes.data,
                self._bit.ctypes.data,
                self.n,
                self._words,
                self._drawn.ctypes.data,
                self._right.ctypes.data,
            )

    def _to_bits(self, marks: npt.NDArray[np.bool_]) -> Bits:
        padded = np.zeros((len(marks), 64 * self._words), dtype=bool)
        padded[:, self._bit] = marks
        return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)

    def _score(self, open_: Bits, rule: _Rule) -> tuple[Ints, Colours]:
        """For each use and image how useful it is as the next layer (0: wrong), and the colour that it paints."""
        images = rule.images
        value = np.empty((3, images), dtype=np.int32)
        paint = np.empty((3, images), dtype=np.uint8)
        if self._core is None:
            return self._score_in_numpy(open_, rule, value, paint)
        self._core.layers_score(
            self._drawn.ctypes.data,
            self._right.ctypes.data,
            open_.ctypes.data,
            self._wanted.ctypes.data,
            self._word.ctypes.data,
            self.pairs,
            images,
            self._words,
            rule.weight.ctypes.data,
            value.ctypes.data,
            paint.ctypes.data,
        )
        return value, paint

    def _score_in_numpy(self, open_: Bits, rule: _Rule, value: Ints, paint: Colours) -> tuple[Ints, Colours]:
        here = self._drawn[: rule.images] & open_
        marked = np.stack([here & self._right[: rule.images], here, open_ & ~here])
        everything = self._per_pair(open_[None])[0]
        share = self._per_pair(marked) * 65536 // np.maximum(1, everything)
        value[...] = share.sum(axis=-1) * 16 // self.pairs // rule.weight
        paint[...] = 0
        value[OWN, (marked[0] != here).any(axis=1)] = 0
        for use in (DRAWN, EMPTY):
            wants = (marked[use][:, None] & self._wanted[None]).any(axis=2)
            single = wants.sum(axis=1) == 1
            value[use, ~single] = 0
            paint[use, single] = wants[single].argmax(axis=1)
        return value, paint

    def _per_pair(self, marks: Bits) -> npt.NDArray[np.int64]:
        """How many bits are set in each pair's words."""
        bits = np.unpackbits(marks.view(np.uint8), axis=-1).reshape(*marks.shape, 64).sum(axis=-1)
        return np.add.reduceat(bits.astype(np.int64), self._word[:-1], axis=-1)

    def _choices(self, open_: Bits, rule: _Rule) -> Iterator[Layer]:
        """Layers that are right wherever they cover open cells, the most useful first, each covering other cells."""
        value, paint = self._score(open_, rule)
        flat = value.ravel()
        useful = np.flatnonzero(flat > 0)
        seen = set()
        for at in useful[np.argsort(-flat[useful], kind="stable")]:
            use, image = divmod(int(at), rule.images)
            layer = image, use, int(paint[use, image])
            mark = (self._covers(layer) & open_).tobytes()
            if mark not in seen:
                seen.add(mark)
                yield layer

    def _covers(self, layer: Layer) -> Bits:
        drawn: Bits = self._drawn[layer[0]]
        return ~drawn if layer[1] == EMPTY else drawn

    def _bottom(self, open_: Bits, rule: _Rule) -> int | None:
        """The first image that is right on all open cells."""
        if self._core is None:
            fits = np.flatnonzero(~(open_ & ~self._right[: rule.images]).any(axis=1))
            return int(fits[0]) if len(fits) else None
        found = self._core.layers_bottom(self._right.ctypes.data, open_.ctypes.data, rule.images, self._words)
        return None if found < 0 else int(found)

    def layered(self) -> list[Layered]:
        """Programs of two or more layers, each taking the cells that those above it leave open; cheapest first."""
        weight = np.ascontiguousarray(self.cost + LAYER_COST, dtype=np.int32)
        return self.merged(self._started(_Rule(len(self.colours), weight, MOST_LAYERS, STARTS)))

    def layered_by_cover(self) -> list[Layered]:
        """The same, each layer the one that covers most, whatever it costs: more and plainer layers; cheapest first."""
        made: list[Layered] = []
        for limit in (*CHEAP, int(self.cost.max(initial=0))):
            images = int(np.searchsorted(self.cost, limit, side="right"))
            weight = np.full(images, LAYER_COST, dtype=np.int32)
            made += self._started(_Rule(images, weight, MOST_BY_COVER, STARTS_BY_COVER))
        return self.merged([m for m in made if m.cost <= DEAREST_BY_COVER])

    def merged(self, made: Sequence[Layered]) -> list[Layered]:
        """Of each outcome the cheapest program, cheapest first."""
        found: dict[bytes, Layered] = {}
        for m in made:
            key = m.colours[self.n :].tobytes()
            if key not in found or m.cost < found[key].cost:
                found[key] = m
        return sorted(found.values(), key=lambda m: m.cost)

    def _started(self, rule: _Rule) -> list[Layered]:
        """What the most useful first layers lead to."""
        firsts = zip(range(rule.starts), self._choices(self.open, rule), strict=False)
        made = (self._completed(first, rule) for _, first in firsts)
        return [m for m in made if m is not None]

    def _completed(self, first: Layer, rule: _Rule) -> Layered | None:
        layers, open_ = [first], self.open & ~self._covers(first)
        while open_.any():
            bottom = self._bottom(open_, rule)
            if bottom is not None:
                return self._laid(layers, bottom)
            more = next(self._choices(open_, rule), None) if len(layers) < rule.most - 1 else None
            if more is None:
                return None
            layers.append(more)
            open_ = open_ & ~self._covers(more)
        return self._laid(layers, None)

    def _laid(self, layers: Sequence[Layer], bottom: int | None) -> Layered:
        cost = sum(int(self.cost[i]) + LAYER_COST for i, _, _ in layers)
        colours = np.zeros(self.colours.shape[1], dtype=np.uint8) if bottom is None else self.colours[bottom].copy()
        for i, use, colour in reversed(layers):
            image = self.colours[i]
            where = image == 0 if use == EMPTY else image != 0
            colours[where] = image[where] if use == OWN else colour
        if bottom is None:
            return Layered(tuple(layers), False, colours, cost)
        return Layered((*layers, (bottom, OWN, 0)), True, colours, cost + int(self.cost[bottom]))
