"""Export to several formats in one call, with a manifest of sizes, digests and versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ternary import _modelfile as modelfile
from ternary._tensorheader import parse_json
from ternary._wholefile import whole_file
from ternary.errors import ExportError, ManifestError
from ternary.export._files import packed_form
from ternary.export._gguffile import to_gguf
from ternary.export._onnxfile import to_onnx
from ternary.export._torchforms import to_pt2, to_torchscript

__all__ = ["FORMATS", "MANIFEST", "Manifest", "ManifestFile", "export", "verify"]

MANIFEST = "manifest.json"
VERSION = 1

_Write = Callable[[nn.Module, Path, Any, dict[str, Any]], object]
_WRITERS: dict[str, tuple[str, _Write]] = {
    "safetensors": (".safetensors", lambda m, p, _, a: modelfile.save(m, p, arguments=a)),
    "base3": (".base3.safetensors", lambda m, p, _, a: modelfile.save(m, p, arguments=a, encoding="base3")),
    "pt2": (".pt2", lambda m, p, x, _: to_pt2(m, p, x)),
    "torchscript": (".ts", lambda m, p, x, _: to_torchscript(m, p, x)),
    "onnx": (".onnx", lambda m, p, x, _: to_onnx(m, p, x)),
    "onnx-exact": (".exact.onnx", lambda m, p, x, _: to_onnx(m, p, x, activations="int8")),
    "onnx-matmulnbits": (".matmulnbits.onnx", lambda m, p, x, _: to_onnx(m, p, x, form="matmulnbits")),
    "onnx-compatible": (".compatible.onnx", lambda m, p, x, _: to_onnx(m, p, x, form="compatible")),
    "gguf": (".gguf", lambda m, p, _, __: to_gguf(m, p)),
}
_UNTRACED = ("safetensors", "base3", "gguf")
FORMATS = tuple(_WRITERS)
"""Names that `export` takes, in the order in which they are written."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file of an export.

    Example:
        >>> from ternary.export import ManifestFile
        >>> ManifestFile("net.onnx", "onnx", 1024, "0" * 64).format
        'onnx'
    """

    name: str
    format: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an export wrote: the model, its files, and the versions of the libraries that wrote them.

    Example:
        >>> from ternary.export import Manifest
        >>> Manifest("MLP", (), {"torch": "2.8.0"}).as_dict()["format"]
        'pentad-ternary-export'
    """

    model: str
    files: tuple[ManifestFile, ...]
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The manifest as plain values, as the file holds it."""
        return {"format": "pentad-ternary-export", "version": VERSION} | asdict(self)


def export(  # long because its documentation counts too
    model: nn.Module,
    directory: str | Path,
    formats: Sequence[str],
    *,
    example: Any = None,
    name: str = "model",
    arguments: dict[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Manifest:
    """Write a model in several formats, and a `manifest.json` with sizes, SHA-256 digests and versions.

    The manifest is written last and each file appears whole, so a folder with a manifest is complete; an earlier
    manifest in the folder is removed first.

    Args:
        model: With ternary or packed layers.
        directory: Where to; made if it is not there.
        formats: Names from `FORMATS`.
        example: An input of the model or a tuple of them, for the formats that trace.
        name: First part of the files' names.
        arguments: The arguments that the model was made with, kept in the model file.
        progress: Called with a format, how many are done, and how many there are.

    Returns:
        What was written.

    Raises:
        ExportError: A format is unknown, or cannot hold the model.
        MissingExtraError: A format's library is not installed.

    Example:
        >>> import tempfile, ternary
        >>> from ternary.export import export
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = export(ternary.zoo.load("mlp")(width=8), folder, ["safetensors", "base3"])
        >>> [file.name for file in manifest.files]
        ['model.safetensors', 'model.base3.safetensors']
    """
    unknown = [f for f in formats if f not in _WRITERS]
    if unknown or not formats:
        raise ExportError(f"got formats {list(formats)}; choose from {', '.join(FORMATS)}")
    if not name or Path(name).name != name or name.startswith("."):
        raise ExportError(f"got name={name!r}; it is the first part of file names")
    packed = packed_form(model)
    traced = [f for f in formats if f not in _UNTRACED]
    if traced and example is None:
        raise ExportError(f"{', '.join(traced)} trace the model: pass example=, an input or a tuple of them (--shape)")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST).unlink(missing_ok=True)
    wanted = [f for f in FORMATS if f in formats]
    files = []
    for done, kind in enumerate(wanted):
        if progress is not None:
            progress(kind, done, len(wanted))
        ending, write = _WRITERS[kind]
        path = directory / f"{name}{ending}"
        write(packed, path, example, arguments or {})
        files.append(ManifestFile(path.name, kind, path.stat().st_size, _digest(path)))
    if progress is not None:
        progress("", len(wanted), len(wanted))
    manifest = Manifest(type(model).__name__, tuple(files), _versions())
    with whole_file(directory / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest.as_dict(), indent=1) + "\n", encoding="utf-8")
    return manifest


def verify(directory: str | Path) -> Manifest:
    """Read an export's manifest and check every file against it.

    Raises:
        ManifestError: There is no manifest, it is damaged, or a file is missing or differs.

    Example:
        >>> import tempfile, ternary
        >>> from ternary.export import export, verify
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = export(ternary.zoo.load("mlp")(width=8), folder, ["safetensors"])
        ...     verify(folder) == manifest
        True
    """
    directory = Path(directory)
    try:
        raw = parse_json((directory / MANIFEST).read_bytes())
        if raw["version"] != VERSION:
            raise ManifestError(f"{directory / MANIFEST} has version {raw['version']}; this library reads {VERSION}")
        files = tuple(ManifestFile(f["name"], f["format"], f["bytes"], f["sha256"]) for f in raw["files"])
        manifest = Manifest(raw["model"], files, raw["versions"])
        if any(Path(f.name).name != f.name or "\0" in f.name or len(os.fsencode(f.name)) > 255 for f in files):
            raise ManifestError(f"{directory / MANIFEST} names a file outside its folder: {[f.name for f in files]}")
    except FileNotFoundError:
        raise ManifestError(f"{directory} has no {MANIFEST}: the export is not there or not complete") from None
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        if isinstance(e, ManifestError):
            raise
        raise ManifestError(f"{directory / MANIFEST} is damaged: {e}") from None
    for file in manifest.files:
        path = directory / file.name
        if not path.is_file():
            raise ManifestError(f"{path} is missing")
        if path.stat().st_size != file.bytes or _digest(path) != file.sha256:
            raise ManifestError(f"{path} is not the file that its manifest names: its size or SHA-256 differs")
    return manifest


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("pentad-ternary", "torch", "onnx", "onnxscript", "gguf", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
