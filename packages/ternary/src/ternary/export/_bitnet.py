"""Hugging Face BitNet checkpoints: packed uint8 weights with a `weight_scale` beside them, read without loss."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ternary._tensorheader import parse_json
from ternary.errors import ImportFormatError
from ternary.export._imported import TernaryTensor

__all__ = ["read_bitnet"]

_SUFFIX = ".weight_scale"


def read_bitnet(path: str | Path, *, inverse_scale: bool | None = None) -> dict[str, TernaryTensor | Tensor]:
    """Read a BitNet checkpoint as Hugging Face's transformers writes it.

    A packed weight of M x K bytes holds 4 M x K values: rows i, i + M, i + 2 M, i + 3 M in the bits of byte row i from
    the lowest up, each as value + 1. `weight_scale` multiplies the weight in checkpoints with
    `linear_class: autobitlinear`, and divides it in others (`bitlinear`).

    Args:
        path: A `.safetensors` file, or a folder with one or several and a `config.json`.
        inverse_scale: Whether the weight is divided by `weight_scale`; by default read from `config.json`.

    Returns:
        Every tensor by name, packed ones as `TernaryTensor`, without their scales. `put_into` packs them into a model.

    Raises:
        ImportFormatError: A file is damaged, a code has no value, a scale does not fit, or nothing tells whether the
            scale multiplies or divides.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> from ternary.export import read_bitnet
        >>> codes = torch.full((1, 2), 0b10_01_00_10, dtype=torch.uint8)
        >>> packed = {"proj.weight": codes, "proj.weight_scale": torch.ones(1)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(packed, f"{folder}/model.safetensors")
        ...     read_bitnet(f"{folder}/model.safetensors", inverse_scale=False)["proj.weight"].values[:, 0].tolist()
        [1, -1, 0, 1]
    """
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ImportFormatError(f"{path} holds no .safetensors file")
    if inverse_scale is None:
        inverse_scale = _inverse(path if path.is_dir() else path.parent)
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as f:
                found |= {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 - not a dict: it has no iterator
        except SafetensorError as e:
            raise ImportFormatError(f"{file} is damaged or no safetensors file: {e}") from None
    made: dict[str, TernaryTensor | Tensor] = {}
    for name, tensor in found.items():
        scale = found.get(name.removesuffix(".weight") + _SUFFIX)
        if name.endswith(_SUFFIX):
            continue
        packed = name.endswith(".weight") and tensor.dtype == torch.uint8
        if packed and scale is None:
            raise ImportFormatError(f"{name} is packed, but there is no {name.removesuffix('.weight')}{_SUFFIX}")
        made[name] = _unpack(name, tensor, scale, inverse_scale) if packed and scale is not None else tensor
    return made


def _inverse(folder: Path) -> bool:
    try:
        config = parse_json((folder / "config.json").read_bytes())
        kind = str(config["quantization_config"].get("linear_class", "bitlinear"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise ImportFormatError(
            f"{folder / 'config.json'} does not tell whether weight_scale multiplies or divides ({e}); "
            "pass inverse_scale"
        ) from None
    return kind != "autobitlinear"


def _unpack(name: str, packed: Tensor, scale: Tensor, inverse: bool) -> TernaryTensor:
    codes = torch.cat([packed >> shift & 3 for shift in (0, 2, 4, 6)])
    if packed.dim() != 2 or (codes.numel() and int(codes.max()) == 3):
        raise ImportFormatError(f"{name}: got bytes that hold no ternary matrix (shape {tuple(packed.shape)})")
    given = scale.float().flatten()
    rows = codes.shape[0]
    if given.numel() not in (1, rows) or not bool((torch.isfinite(given) & (given != 0)).all()):
        raise ImportFormatError(
            f"{name}: got {given.numel()} scales for {rows} rows, wanted 1 or {rows}, finite, not 0"
        )
    return TernaryTensor(codes.to(torch.int8) - 1, (1 / given if inverse else given).expand(rows).clone())
