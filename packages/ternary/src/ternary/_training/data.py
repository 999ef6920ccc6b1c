"""Small real data sets that packages ship, and arrays from a file, as float tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ternary.errors import MissingExtraError, NonFiniteActivationError, TernaryError

CONTEXT = 16
"""Characters that `python_docs` shows before the one to guess."""


@dataclass(frozen=True, slots=True)
class Split:
    """Training and held-out samples: features of shape (N, ...) in float32 or int64, targets of shape (N,) in int64."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(max(self.train_y.max(), self.test_y.max())) + 1


def digits() -> Split:
    """Return scikit-learn's 1,797 images of handwritten digits, 64 features, every fifth held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise MissingExtraError("the digits come with scikit-learn: pip install scikit-learn") from e
    x, y = load_digits(return_X_y=True)
    return _split(np.asarray(x, dtype=np.float32) / 16.0, np.asarray(y), np.arange(len(y)) % 5 == 0)


def mnist1d() -> Split:
    """Return MNIST-1D as its own generator makes it: 4,000 training and 1,000 held-out signals of 40 samples."""
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as e:
        raise MissingExtraError("MNIST-1D is made by the package mnist1d: pip install mnist1d") from e
    made = make_dataset(get_dataset_args())
    x = np.concatenate([made["x"], made["x_test"]]).astype(np.float32)
    y = np.concatenate([made["y"], made["y_test"]])
    return _split(x, y, np.arange(len(y)) >= len(made["y"]))


def python_docs() -> Split:
    """Return the text of Python's own help: sixteen characters and the next one, every fifth paragraph held out.

    A paragraph that occurs again is left out. Printable ASCII characters have the numbers 0 to 94, the end of a line
    has 95 and any other character 96. Each third place of the text is a sample.
    """
    from pydoc_data.topics import topics

    parts = dict.fromkeys(part for name in sorted(topics) for part in topics[name].split("\n\n"))
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    for i, part in enumerate(parts):
        codes = np.frombuffer(f"{part}\n".encode("ascii", "replace"), np.uint8).astype(np.int64) - 32
        codes = np.where(codes == ord("\n") - 32, 95, np.where((codes < 0) | (codes > 94), 96, codes))
        padded = np.concatenate([np.full(CONTEXT, 95), codes])
        (test if i % 5 == 0 else train).append(np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + 1)[::3])
    a, b = (torch.from_numpy(np.concatenate(found)) for found in (train, test))
    return Split(a[:, :-1].contiguous(), a[:, -1], b[:, :-1].contiguous(), b[:, -1])


def from_npz(path: str | Path) -> Split:
    """Return the arrays `x` and `y` of an .npz file, every fifth sample held out."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = np.asarray(arrays["x"], dtype=np.float32), np.asarray(arrays["y"])
    except (KeyError, ValueError, OSError) as e:
        if isinstance(e, FileNotFoundError):
            raise
        raise TernaryError(f"{path} is no .npz file with arrays 'x' and 'y': {e}") from e
    if len(x) != len(y) or len(x) < 10 or not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise TernaryError(f"{path}: got x of shape {x.shape} and y of {y.dtype}{y.shape}; wanted N samples, N classes")
    if not np.isfinite(x).all():
        raise NonFiniteActivationError(f"{path}: 'x' holds NaN or infinite values")
    return _split(x, y, np.arange(len(y)) % 5 == 0)


def load(name: str) -> Split:
    """Return 'digits', 'mnist1d', 'python-docs', or the contents of an .npz file."""
    if name in SETS:
        return SETS[name]()
    if name.endswith(".npz"):
        return from_npz(name)
    raise TernaryError(f"unknown data {name!r}; it is {', '.join(SETS)}, or a path that ends in .npz")


SETS: dict[str, Callable[[], Split]] = {"digits": digits, "mnist1d": mnist1d, "python-docs": python_docs}


def _split(x: np.ndarray, y: np.ndarray, held: np.ndarray) -> Split:
    a, b = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64))
    mask = torch.from_numpy(held)
    return Split(a[~mask], b[~mask], a[mask], b[mask])
