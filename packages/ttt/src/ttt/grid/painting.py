"""Transformations that keep a grid's size: gravity, lines, fills, moves, repairs of patterns."""

# mypy: disable-error-code="import-untyped,no-any-return"
from __future__ import annotations

from functools import partial

import numpy as np
from scipy import ndimage

from ttt.grid.answers import Grid
from ttt.grid.scene import EIGHT, KINDS, Mask, Scene, Thing, framed, turned
from ttt.grid.shaping import pick
from ttt.grid.views import add, view

TURNS = {"down": 0, "right": 3, "up": 2, "left": 1}
"""Quarter turns (numpy's sense) that make each direction point down."""
STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
DIAGONALS = {"up left": (-1, -1), "up right": (-1, 1), "down left": (1, -1), "down right": (1, 1)}


def _gravity(direction: str, s: Scene) -> Grid:
    g = turned(s.grid, TURNS[direction])
    out = np.take_along_axis(g, np.argsort(g != s.background, axis=0, kind="stable"), axis=0)
    return turned(out, -TURNS[direction])


def _drop(direction: str, kind: str, s: Scene) -> Grid | None:
    things = s.things(kind)
    if not 1 <= len(things) <= 40:
        return None
    turn = TURNS[direction]
    labels = turned(s.labels(kind), turn)
    g = turned(s.grid, turn)
    height = g.shape[0]
    cells = [np.nonzero(labels == i + 1) for i in range(len(things))]
    out = np.full_like(g, s.background)
    for i in sorted(range(len(things)), key=lambda i: -int(cells[i][0].max())):
        r, c = cells[i]
        fall = 0
        while r.max() + fall + 1 < height and (out[r + fall + 1, c] == s.background).all():
            fall += 1
        out[r + fall, c] = g[r, c]
    return turned(out, -turn)


for _d in TURNS:
    add(f"cells fallen {_d}", partial(_gravity, _d), keeps_size=True, second=True)
    add(f"objects fallen {_d}", partial(_drop, _d, "object"), keeps_size=True)
    add(f"pieces fallen {_d}", partial(_drop, _d, "piece"), keeps_size=True)


def shift(grid: Grid, dr: int, dc: int, fill: int) -> Grid:
    """The grid moved by some rows and columns; what comes in is `fill`."""
    out = np.full_like(grid, fill)
    h, w = grid.shape
    if abs(dr) < h and abs(dc) < w:
        out[max(dr, 0) : h + min(dr, 0), max(dc, 0) : w + min(dc, 0)] = grid[
            max(-dr, 0) : h + min(-dr, 0), max(-dc, 0) : w + min(-dc, 0)
        ]
    return out


def _shifted(step: tuple[int, int], n: int, s: Scene) -> Grid:
    return shift(s.grid, step[0] * n, step[1] * n, s.background)


def _rolled(step: tuple[int, int], s: Scene) -> Grid:
    return np.roll(s.grid, step, axis=(0, 1))


for _d, _step in STEPS.items():
    for _n in (1, 2, 3):
        add(f"moved {_d} by {_n}", partial(_shifted, _step, _n), keeps_size=True, cost=1.0 + 0.1 * _n)
    add(f"rolled {_d}", partial(_rolled, _step), keeps_size=True)


def seen(s: Scene, step: tuple[int, int]) -> Grid:
    """Per cell the first drawn colour found by walking from it in a direction, background if none."""
    key = ("seen", step)
    if key not in s.memo:
        out = shift(s.grid, -step[0], -step[1], s.background)
        reach = 1
        while reach < max(s.grid.shape):  # what is seen within 2n cells: within n from here, else within n from there
            out = np.where(out != s.background, out, shift(out, -step[0] * reach, -step[1] * reach, s.background))
            reach *= 2
        s.memo[key] = out
    found: Grid = s.memo[key]
    return found


def _rays(steps: tuple[tuple[int, int], ...], s: Scene) -> Grid:
    out = s.grid.copy()
    for dr, dc in steps:
        found = seen(s, (-dr, -dc))
        out = np.where((out == s.background) & (found != s.background), found, out)
    return out


_RAYS = {
    **{f"lines drawn {d}": (st,) for d, st in STEPS.items()},
    "lines drawn left and right": (STEPS["left"], STEPS["right"]),
    "lines drawn up and down": (STEPS["up"], STEPS["down"]),
    "lines drawn in four directions": tuple(STEPS.values()),
    **{f"lines drawn {d}": (st,) for d, st in DIAGONALS.items()},
    "lines drawn along one diagonal": (DIAGONALS["up left"], DIAGONALS["down right"]),
    "lines drawn along the other diagonal": (DIAGONALS["up right"], DIAGONALS["down left"]),
    "lines drawn along both diagonals": tuple(DIAGONALS.values()),
}
for _name, _steps in _RAYS.items():
    add(_name, partial(_rays, _steps), keeps_size=True, second=True)


def _joined(diagonal: bool, overwrite: bool, axis: str, s: Scene) -> Grid:
    out = s.grid.copy()
    pairs = {"row": (STEPS["left"], STEPS["right"]), "column": (STEPS["up"], STEPS["down"])}
    use = [pairs[axis]] if axis in pairs else list(pairs.values())
    if diagonal:
        use = [(DIAGONALS["up left"], DIAGONALS["down right"]), (DIAGONALS["up right"], DIAGONALS["down left"])]
    for a, b in use:
        ahead, back = seen(s, a), seen(s, b)
        hit = (ahead == back) & (ahead != s.background) & (~s.front | overwrite)
        out[hit] = ahead[hit]
    return out


add("equal colours joined in rows", partial(_joined, False, False, "row"), keeps_size=True)
add("equal colours joined in columns", partial(_joined, False, False, "column"), keeps_size=True)
add("equal colours joined in rows and columns", partial(_joined, False, False, "both"), keeps_size=True, second=True)
add("equal colours joined along diagonals", partial(_joined, True, False, "both"), keeps_size=True)


def enclosed(s: Scene, sides_only: bool = True) -> Mask:
    """Background cells from which no path over background leads to the border."""
    key = ("enclosed", sides_only)
    if key not in s.memo:
        outside = framed(~s.front, True)
        labels, _ = ndimage.label(outside, None if sides_only else EIGHT)
        s.memo[key] = (outside & (labels != labels[0, 0]))[1:-1, 1:-1]
    found: Mask = s.memo[key]
    return found


@view("holes filled with the colour around them", keeps_size=True, second=True)
def fill_holes(s: Scene) -> Grid:
    """Each enclosed background region takes the colour found above it."""
    hole = enclosed(s)
    return np.where(hole, seen(s, STEPS["up"]), s.grid)


@view("objects filled to their boxes", keeps_size=True, second=True)
def boxes_filled(s: Scene) -> Grid:
    """Every object's bounding box filled with its commonest colour, what is drawn stays."""
    out = s.grid.copy()
    for t in s.things("object"):
        part = out[t.top : t.top + t.height, t.left : t.left + t.width]
        part[part == s.background] = t.colour
    return out


def _painted(kind: str, how: str, s: Scene) -> Grid | None:
    things = s.things(kind)
    if not things:
        return None
    out = s.grid.copy()
    labels = s.labels(kind)
    for i, t in enumerate(things):
        drawn = t.colours.copy()
        drawn[t.background] = 0
        present = np.flatnonzero(drawn)
        if not len(present):
            continue
        colour = {
            "commonest": drawn.argmax(),
            "rarest": present[drawn[present].argmin()],
            "top left": t.patch[0, 0],
        }[how]
        where = labels == i + 1
        out[where & s.front if kind == "panel" else where] = colour
    return out


for _kind in ("object", "panel"):
    add(f"each {KINDS[_kind]} painted in its commonest colour", partial(_painted, _kind, "commonest"), keeps_size=True)
    add(f"each {KINDS[_kind]} painted in its rarest colour", partial(_painted, _kind, "rarest"), keeps_size=True)


def _kept(kind: str, name: str, how: str, drop: bool, s: Scene) -> Grid | None:
    i = pick(s, kind, name, how)
    if i is None:
        return None
    hit = s.labels(kind) == i + 1
    keep = ~hit if drop else hit
    return np.where(keep, s.grid, np.uint8(s.background))


for _kind in ("piece", "object", "colour"):
    for _how in ("most", "least", "odd"):
        _text = f"the {KINDS[_kind]} with {'a unique' if _how == 'odd' else _how} number of cells"
        _args = (_kind, "number of cells", _how)
        add(f"only {_text} kept", partial(_kept, *_args, False), keeps_size=True, second=_how == "most")
        add(f"{_text} removed", partial(_kept, *_args, True), keeps_size=True, second=_how == "most")


@view("single cells removed", keeps_size=True, second=True)
def no_dots(s: Scene) -> Grid:
    """Pieces of one cell become background."""
    out = s.grid.copy()
    for t in s.things("piece"):
        if t.mask.size == 1:
            out[t.top, t.left] = s.background
    return out


@view("each cell the commonest colour of its 3 x 3 surroundings", keeps_size=True)
def smoothed(s: Scene) -> Grid:
    """Majority vote of the 3 x 3 neighbourhood; the cell's own colour wins ties."""
    votes = np.stack([ndimage.uniform_filter((s.grid == c).astype(np.float32), 3, mode="nearest") for c in range(10)])
    own = np.take_along_axis(votes, s.grid[None].astype(np.int64), axis=0)[0]
    return np.where(votes.max(axis=0) > own + 1e-4, votes.argmax(axis=0), s.grid).astype(np.uint8)


def _flip_things(pose: str, kind: str, s: Scene) -> Grid | None:
    things = s.things(kind)
    if not 1 <= len(things) <= 40:
        return None
    out = np.full_like(s.grid, s.background) if kind == "object" else s.grid.copy()
    for t in things:
        if pose == "left-right":
            new = t.alone[:, ::-1]
        elif pose == "up-down":
            new = t.alone[::-1]
        elif t.height == t.width:
            new = turned(t.alone, 2 if pose == "turned" else 3)
        else:
            return None
        part = out[t.top : t.top + t.height, t.left : t.left + t.width]
        part[...] = np.where(new == s.background, part, new) if kind == "object" else new
    return out


for _kind in ("object", "panel"):
    for _pose in ("left-right", "up-down"):
        add(f"each {KINDS[_kind]} mirrored {_pose}", partial(_flip_things, _pose, _kind), keeps_size=True)


def _moved_to(mover: int, target: int, s: Scene) -> Grid | None:
    """Pieces of one colour slide straight towards the other colour until they touch it."""
    if not s.counts[mover] or not s.counts[target]:
        return None
    out = np.where(s.grid == mover, np.uint8(s.background), s.grid)
    goal = np.argwhere(s.grid == target)
    low, high = goal.min(axis=0), goal.max(axis=0)
    moved = False
    for t in s.things("piece"):
        if t.colour != mover:
            continue
        box = ((t.top, t.top + t.height - 1), (t.left, t.left + t.width - 1))
        step = [0, 0]
        for axis in (0, 1):
            if box[axis][1] < low[axis]:
                step[axis] = 1
            elif box[axis][0] > high[axis]:
                step[axis] = -1
        if not (step[0] or step[1]) or (step[0] and step[1]):
            _stamp(out, t, t.top, t.left)
            continue
        r, c = np.nonzero(t.mask)
        r, c = r + t.top, c + t.left
        n = 0
        while True:
            nr, nc = r + step[0] * (n + 1), c + step[1] * (n + 1)
            if nr.min() < 0 or nc.min() < 0 or nr.max() >= out.shape[0] or nc.max() >= out.shape[1]:
                return None
            if (out[nr, nc] != s.background).any():
                break
            n += 1
        out[r + step[0] * n, c + step[1] * n] = mover
        moved = moved or n > 0
    return out if moved else None


def _stamp(out: Grid, t: Thing, top: int, left: int) -> None:
    part = out[top : top + t.height, left : left + t.width]
    part[t.mask] = t.patch[t.mask]


def _moved_to_any(s: Scene) -> Grid | None:
    """The smaller colour's pieces slide to the bigger piece's colour."""
    order = [int(c) for c in np.argsort(-s.counts, kind="stable") if s.counts[c] and c != s.background]
    return _moved_to(order[1], order[0], s) if len(order) == 2 else None


for _a in range(1, 10):
    for _b in range(1, 10):
        if _a != _b:
            add(f"pieces of colour {_a} slid to colour {_b}", partial(_moved_to, _a, _b), keeps_size=True, cost=1.4)
add("pieces of the rarer colour slid to the commoner", _moved_to_any, keeps_size=True)


def _axes(grid: Grid, hidden: Mask, horizontal: bool) -> Grid | None:
    """Repair by the mirror line with the most agreeing and no contradicting cells."""
    g, m = (grid, hidden) if horizontal else (grid.T, hidden.T)
    w = g.shape[1]
    best: tuple[int, Grid] | None = None
    for twice in range(w // 2, w + w // 2):  # the line is at twice/2
        partner = twice - np.arange(w)
        ok = (partner >= 0) & (partner < w)
        cols = np.flatnonzero(ok)
        other = g[:, partner[cols]]
        known = ~m[:, cols] & ~m[:, partner[cols]]
        if not known.any() or (g[:, cols] != other)[known].any():
            continue
        agree = int((known & (g[:, cols] == other)).sum())
        if best is None or agree > best[0]:
            out = g.copy()
            fill = m[:, cols] & ~m[:, partner[cols]]
            part = out[:, cols]
            part[fill] = other[fill]
            out[:, cols] = part
            best = (agree, out)
    if best is None or best[0] < g.size // 4:
        return None
    return best[1] if horizontal else best[1].T


def mended_by_mirror(grid: Grid, colour: int) -> Grid | None:
    """Replace the cells of a colour by their mirror images, over any lines and the diagonal."""
    hidden = grid == colour
    if not hidden.any() or hidden.all():
        return None
    out = grid.copy()
    for _ in range(2):
        for horizontal in (True, False):
            new = _axes(out, out == colour, horizontal)
            out = out if new is None else new
        if out.shape[0] == out.shape[1]:
            h = out == colour
            known = ~h & ~h.T
            if not (out != out.T)[known].any():
                out = np.where(h, out.T, out)
    return None if np.array_equal(out, grid) else out


def mended_by_tiling(grid: Grid, colour: int) -> Grid | None:
    """Replace the cells of a colour by the smallest repeating pattern (also a sheared one) that fits the rest."""
    hidden = grid == colour
    h, w = grid.shape
    rows, cols = np.indices(grid.shape)
    known = ~hidden.ravel()
    colours = grid.ravel()[known]
    periods = sorted(
        ((p, q) for p in range(1, h + 1) for q in range(1, w + 1) if p * q * 2 <= h * w), key=lambda x: x[0] * x[1]
    )
    for p, q in periods[:260]:
        for shear in (0,) if p > 6 or h <= p else (0, 1, q - 1):
            key = ((rows % p) * q + (cols + shear * (rows // p)) % q).ravel()
            tile = np.full(p * q, -1)
            tile[key[known]] = colours
            if (tile[key[known]] == colours).all() and (tile >= 0).all():
                return tile[key].reshape(h, w).astype(np.uint8)
    return None


def _mended(how: str, colour: int, patch_only: bool, s: Scene) -> Grid | None:
    key = ("mended", how, colour)
    if key not in s.memo:
        fits = 0 < s.counts[colour] < 0.6 * s.grid.size
        s.memo[key] = (mended_by_mirror if how == "mirror" else mended_by_tiling)(s.grid, colour) if fits else None
    out: Grid | None = s.memo[key]
    if out is None or not patch_only:
        return out
    r, c = np.nonzero(s.grid == colour)
    return out[r.min() : r.max() + 1, c.min() : c.max() + 1]


for _c in range(10):
    for _how, _text in (("mirror", "mirror symmetry"), ("tiling", "its repeating pattern")):
        add(f"colour {_c} mended by {_text}", partial(_mended, _how, _c, False), keeps_size=True)
        add(f"the part under colour {_c} mended by {_text}", partial(_mended, _how, _c, True))


def _mirror_fill(axes: str, s: Scene) -> Grid | None:
    """Overlay the drawn part's box with its own mirror images."""
    if not s.front.any():
        return None
    r, c = np.nonzero(s.front)
    box = (slice(r.min(), r.max() + 1), slice(c.min(), c.max() + 1))
    g = s.grid[box]
    images = {
        "lr": [g[:, ::-1]],
        "ud": [g[::-1]],
        "both": [g[:, ::-1], g[::-1], g[::-1, ::-1]],
        "turns": [turned(g, k) for k in (1, 2, 3)],
        "all": [g[:, ::-1], g[::-1], *(turned(g, k) for k in (1, 2, 3)), g.T],
    }[axes]
    out = g.copy()
    for image in images:
        if image.shape != g.shape:
            return None
        out = np.where(out == s.background, image, out)
    full = s.grid.copy()
    full[box] = out
    return full


for _axes_name, _text in {
    "lr": "left-right mirror image",
    "ud": "up-down mirror image",
    "both": "mirror images",
    "turns": "turns",
    "all": "turns and mirror images",
}.items():
    add(f"the drawing overlaid with its {_text}", partial(_mirror_fill, _axes_name), keeps_size=True, second=True)


@view("rows sorted by how much is drawn", keeps_size=True)
def rows_sorted(s: Scene) -> Grid:
    """Rows with most drawn cells last."""
    return s.grid[np.argsort(s.front.sum(axis=1), kind="stable")]


@view("columns sorted by how much is drawn", keeps_size=True)
def columns_sorted(s: Scene) -> Grid:
    """Columns with most drawn cells first."""
    return s.grid[:, np.argsort(-s.front.sum(axis=0), kind="stable")]


@view("two colours exchanged", keeps_size=True, second=True)
def swapped(s: Scene) -> Grid | None:
    """Exchange the two colours of a two-coloured grid."""
    present = np.flatnonzero(s.counts)
    if len(present) != 2:
        return None
    return np.where(s.grid == present[0], present[1], present[0]).astype(np.uint8)


def _repeat_pattern(axis: int, s: Scene) -> Grid | None:
    """Continue the drawn stripes with their period to the end of the grid."""
    g = s.grid if axis == 0 else s.grid.T
    drawn = (g != s.background).any(axis=1)
    if not drawn.any() or (drawn[-1] and drawn[0]):
        return None
    n = int(np.flatnonzero(drawn)[-1]) + 1
    for p in range(1, n + 1):
        if n - p >= 0 and (g[p:n] == g[: n - p]).all() and (n > p or drawn[0]):
            out = g[np.arange(len(g)) % p]
            return out if axis == 0 else out.T
    return None


add("the drawn rows repeated downwards", partial(_repeat_pattern, 0), keeps_size=True)
add("the drawn columns repeated to the right", partial(_repeat_pattern, 1), keeps_size=True)


def _spread(colourless: bool, s: Scene) -> Grid | None:
    """Every cell takes the colour of the nearest drawn cell."""
    if not s.front.any():
        return None
    _, (r, c) = ndimage.distance_transform_edt(~s.front, return_indices=True)
    return s.grid[r, c]


add("each cell the colour of the nearest drawn cell", partial(_spread, False), keeps_size=True)


def _outlined(diagonal: bool, s: Scene) -> Grid:
    out = s.grid.copy()
    for step in (*STEPS.values(), *(DIAGONALS.values() if diagonal else ())):
        near = shift(s.grid, step[0], step[1], s.background)
        out = np.where((out == s.background) & (near != s.background), near, out)
    return out


add("objects grown by one cell to the sides", partial(_outlined, False), keeps_size=True, second=True)
add("objects grown by one cell all around", partial(_outlined, True), keeps_size=True, second=True)
