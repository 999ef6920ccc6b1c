"""The node that `packs.py` runs in a pack's environment: it imports what the pack asks for and flips an image."""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

_NOT_CODE = {"tests", "test", "docs", "examples", "benchmarks", "scripts", "tools"}


def _modules(name: str) -> list[str]:
    """Return the modules that a distribution installs: the one with its name if there is one, else all of them."""
    owned: dict[str, list[str]] = defaultdict(list)
    for module, owners in metadata.packages_distributions().items():
        for owner in owners:
            owned[_plain(owner)].append(module)
    found = [module for module in owned[_plain(name)] if module.isidentifier() and not module.startswith("_")]
    same = [module for module in found if _plain(module) == _plain(name)]
    return same or sorted(set(found) - _NOT_CODE)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.lower())


def import_all() -> dict[str, str]:
    """Import every package that the requirements file names and that is installed; return what failed, and why."""
    failed = {}
    for line in (Path(__file__).parent / "requirements.txt").read_text().splitlines():
        name = re.split(r"[^A-Za-z0-9._-]", line.strip(), maxsplit=1)[0]
        if not name or name.startswith("-"):
            continue
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:  # a marker leaves it out here
            continue
        for module in _modules(name):
            try:
                importlib.import_module(module)
            except BaseException as failure:  # packages exit, too, while they are imported
                failed[module] = f"{type(failure).__name__}: {failure}"
    return failed


def flip(image: Any) -> tuple[str, Any]:
    """Return the first library of the environment that can flip an image, and the image flipped by it."""
    for module, flipped in LIBRARIES.items():
        try:
            library = importlib.import_module(module)
        except Exception:  # `import_all` reports it
            continue
        return module, flipped(library, image)
    raise RuntimeError("the environment has no library for images")


def reverse(data: bytes) -> bytes:
    """Return the bytes in the other order, for packs without a library for images."""
    return data[::-1]


def _by_pillow(pillow: Any, image: Any) -> Any:
    numpy = importlib.import_module("numpy")
    return numpy.asarray(pillow.fromarray(image).transpose(pillow.Transpose.FLIP_LEFT_RIGHT))


LIBRARIES = {
    "cv2": lambda cv2, image: cv2.flip(image, 1),
    "PIL.Image": _by_pillow,
    "torch": lambda torch, image: torch.flip(torch.tensor(image), [1]).numpy(),
    "numpy": lambda numpy, image: numpy.flip(image, 1),
}
