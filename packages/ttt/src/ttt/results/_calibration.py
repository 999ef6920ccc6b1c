"""Confidence curves: map a backend's own confidence to the share of such answers that were right."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from ttt._files import read_regular
from ttt.errors import UnreadableFileError

MAX_BYTES = 1 << 20
BINS = 10
"""Equal-width bins of confidence in which claims and truth are compared."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A non-decreasing piecewise linear map of claimed to true confidence, both in [0, 1].

    Example:
        >>> ttt.results.Curve((0.0, 1.0), (0.0, 0.5))(0.5)
        0.25
    """

    claimed: tuple[float, ...]
    true: tuple[float, ...]

    def __call__(self, confidence: float) -> float:
        """Return the calibrated probability for a claimed one."""
        return float(np.interp(confidence, self.claimed, self.true))


def fit_curve(claimed: Sequence[float], right: Sequence[bool], prior: float = 4.0) -> Curve:
    """Fit a curve by isotonic regression (pool adjacent violators, Ayer et al. 1955).

    Example:
        >>> curve = ttt.results.fit_curve([0.1, 0.2, 0.8, 0.9], [False, False, True, True])
        >>> curve(0.9) > curve(0.1)
        True

    Args:
        claimed: Claimed confidences, each in [0, 1].
        right: Whether each answer was right.
        prior: How many answers of the overall share are added to each pooled group, so that three right answers of
            three do not become certainty.
    """
    if len(claimed) != len(right) or not claimed:
        raise ValueError(f"got {len(claimed)} confidences and {len(right)} outcomes, wanted as many, at least one")
    base = float(np.mean(right))
    values, which, counts = np.unique(claimed, return_inverse=True, return_counts=True)
    shares = np.bincount(which, weights=np.asarray(right, float)) / counts  # equal claims are one group from the start
    groups: list[tuple[float, float, float]] = []  # weight, mean claim, share right
    for count, value, share in zip(counts, values, shares, strict=True):
        groups.append((float(count), float(value), float(share)))
        while len(groups) > 1 and groups[-2][2] >= groups[-1][2]:
            (w1, x1, y1), (w2, x2, y2) = groups[-2:]
            w = w1 + w2
            groups[-2:] = [(w, (w1 * x1 + w2 * x2) / w, (w1 * y1 + w2 * y2) / w)]
    shrunk = [(w * y + prior * base) / (w + prior) for w, _, y in groups]
    monotone = np.maximum.accumulate(shrunk)
    return Curve(tuple(round(x, 4) for _, x, _ in groups), tuple(round(float(y), 4) for y in monotone))


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = BINS) -> list[tuple[float, float, int]]:
    """Return mean confidence, share right and count per equal-width bin of confidence, empty bins left out.

    Example:
        >>> ttt.results.reliability([0.95, 0.95], [True, False])
        [(0.95, 0.5, 2)]
    """
    c, r = np.asarray(confidence, float), np.asarray(right, float)
    which = np.minimum((c * bins).astype(int), bins - 1)
    return [
        (float(c[which == b].mean()), float(r[which == b].mean()), int((which == b).sum()))
        for b in range(bins)
        if (which == b).any()
    ]


def calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = BINS) -> float:
    """Return the expected calibration error: the gap of confidence and share right, averaged over all answers.

    Example:
        >>> round(ttt.results.calibration_error([0.95, 0.95], [True, False]), 2)
        0.45
    """
    return sum(n * abs(c - r) for c, r, n in reliability(confidence, right, bins)) / max(1, len(confidence))


@dataclass(frozen=True, slots=True)
class Calibration:
    """A curve for each stage of one backend; claims of other stages are used unchanged.

    Example:
        >>> halved = ttt.results.Calibration("mine", {"search": ttt.results.Curve((0.0, 1.0), (0.0, 0.5))})
        >>> halved("search", 0.8), halved("net", 0.8)
        (0.4, 0.8)

    Attributes:
        backend: The name of the backend that the curves were fitted on.
        curves: The curves, by stage.
    """

    backend: str
    curves: Mapping[str, Curve]

    def __call__(self, stage: str, confidence: float) -> float:
        """Return the calibrated confidence, in [0, 1], for the claim of a stage."""
        bounded = min(1.0, max(0.0, confidence))
        curve = self.curves.get(stage)
        return bounded if curve is None else curve(bounded)


AS_CLAIMED = Calibration("", {})
"""Uses every claim unchanged."""


def read_calibration(path: str | os.PathLike[str] | None = None) -> Calibration:
    """Read curves from a file that `ttt eval --calibrate` wrote; without a path, those that come with ttt.

    Example:
        >>> ttt.results.read_calibration().backend
        'grid'

    Raises:
        UnreadableFileError: The file is missing, or is not a file of rising curves.
    """
    try:
        own = files("ttt.results").joinpath("calibration.json")
        raw = json.loads(own.read_text("utf-8") if path is None else read_regular(Path(path), MAX_BYTES))
        curves = {
            str(k): Curve(tuple(map(float, c["claimed"])), tuple(map(float, c["true"])))
            for k, c in raw["curves"].items()
        }
        backend = str(raw["backend"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableFileError(
            f"{path}: cannot be read as confidence curves ({type(error).__name__}: {error}); "
            "use a file that ttt eval --calibrate wrote"
        ) from error
    for stage, c in curves.items():
        for values in (c.claimed, c.true):
            rises = list(values) == sorted(values) and all(0 <= v <= 1 for v in values)
            if not rises or not values or len(c.claimed) != len(c.true):
                raise UnreadableFileError(f"{path}: the curve of {stage!r} does not rise within 0 to 1: {values}")
    return Calibration(backend, curves)


def calibration_json(backend: str, outcomes: Iterable[tuple[str, float, bool]], about: str) -> str:
    """Fit one curve per stage to triples (stage, claimed, right); return the text of a calibration file."""
    by_stage: dict[str, list[tuple[float, bool]]] = {}
    for stage, claimed, right in outcomes:
        by_stage.setdefault(stage, []).append((claimed, right))
    curves = {}
    for stage, rows in sorted(by_stage.items()):
        curve = fit_curve([c for c, _ in rows], [r for _, r in rows])
        curves[stage] = {"claimed": curve.claimed, "true": curve.true, "answers": len(rows)}
    return json.dumps({"about": about, "backend": backend, "curves": curves}, indent=1) + "\n"
