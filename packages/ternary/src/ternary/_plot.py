"""Pictures of trainings and of packed models, with matplotlib. Needs the extra `plot`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ternary._wholefile import whole_file
from ternary.errors import MissingExtraError, TernaryError

if TYPE_CHECKING:
    from ternary._modelfile import ModelInfo
    from ternary._training import History


def _figure(columns: int, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise MissingExtraError('pictures need matplotlib: pip install "pentad-ternary[plot]"') from e
    figure = Figure(figsize=(5 * columns, height), layout="constrained")
    return figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]


def _write(figure: Any, path: str | Path) -> None:
    known = figure.canvas.get_supported_filetypes()
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending not in known:
        raise TernaryError(f"got {str(path)!r} as the file of a picture; wanted an ending such as .png, .svg or .pdf")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def curves(histories: dict[str, History], path: str | Path, title: str = "") -> None:
    """Draw loss and held-out accuracy by epoch, one line per training, to a file (PNG, SVG or PDF)."""
    figure, (left, right) = _figure(2, 3.5)
    for name, h in histories.items():
        left.plot(range(1, len(h.loss) + 1), h.loss, label=name)
        if not all(math.isnan(a) for a in h.accuracy):
            right.plot(range(1, len(h.accuracy) + 1), [100 * a for a in h.accuracy], label=name)
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="held-out accuracy [%]")
    left.legend()
    figure.suptitle(title)
    _write(figure, path)


def accuracies(table: dict[str, dict[str, list[float]]], path: str | Path) -> None:
    """Draw the accuracy of each method on each data set, a dot per seed and a bar at the mean, to a file."""
    figure, axes = _figure(len(table), 3.5)
    for axis, (data, methods) in zip(axes, table.items(), strict=True):
        for at, (_, values) in enumerate(methods.items()):
            shown = [100 * v for v in values]
            axis.scatter([at] * len(shown), shown, s=18, alpha=0.6)
            mean = sum(shown) / len(shown)
            axis.hlines(mean, at - 0.3, at + 0.3)
            axis.annotate(f"{mean:.2f}", (at + 0.05, mean), fontsize=8, va="bottom")
        axis.set_xticks(range(len(methods)), list(methods))
        axis.set(title=data, ylabel="held-out accuracy [%]")
    _write(figure, path)


def model_picture(info: ModelInfo, path: str | Path) -> None:
    """Draw bytes and zeros of each packed layer of a model file, to a file."""
    names = list(info.layers) or ["(no ternary layer)"]
    figure, (left, right) = _figure(2, max(2.5, 0.28 * len(names) + 1))
    sizes = [info.tensor_bytes.get((n + "." if n else "") + "weight.packed", 0) / 1024 for n in info.layers] or [0]
    zeros = [100 * e.zeros / max(1, math.prod(e.shape)) for e in info.layers.values()] or [0]
    left.barh(names, sizes)
    left.set(xlabel="packed weights [KiB]")
    right.barh(names, zeros)
    right.set(xlabel="zeros [%]", xlim=(0, 100), yticks=[])
    left.invert_yaxis()
    right.invert_yaxis()
    figure.suptitle(f"{info.model}: {info.file_bytes:,} bytes in all")
    _write(figure, path)
