"""A trained decoder as a model file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ternary.errors import ImportFormatError
from ternary.llm._decoder import Decoder
from ternary.llm._matrices import TernaryMatrix, exact_rows, from_codes
from ternary.llm._source import write_model
from ternary.nn import TernaryLinear

__all__ = ["save"]

Floats = NDArray[np.float32]


def save(decoder: Decoder, path: str | Path, *, tokenizer: str = "", chat_template: str = "") -> None:
    """Write the model file of a decoder, its ternary layers packed.

    Args:
        decoder: With ternary projections, or float ones whose rows are exactly ternary.
        path: Where to write, by custom ending in `.ternary`.
        tokenizer: JSON of the `tokenizers` library.
        chat_template: A jinja2 template that turns messages into a text.

    Raises:
        ImportFormatError: A float projection is not ternary, or a weight is not finite.
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from ternary import llm
        >>> config = llm.ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32)
        >>> llm.save(llm.Decoder(config, ternary=True), tempfile.mkdtemp() + "/m.ternary")
    """
    metadata = {"chat_template": chat_template} if chat_template else {}
    write_model(_DecoderSource(decoder, tokenizer.encode(), metadata), path)


class _DecoderSource:
    def __init__(self, decoder: Decoder, tokenizer: bytes, metadata: dict[str, Any]):
        self.config, self.tokenizer, self.metadata = decoder.config, tokenizer, metadata
        self._decoder = decoder

    def _array(self, name: str) -> Floats:
        tensor = self._decoder.get_parameter(name)
        return np.ascontiguousarray(tensor.detach().cpu().float().numpy())

    def vector(self, name: str) -> Floats:
        """Return a norm or a bias."""
        return self._array(name if name.endswith(".bias") else name + ".weight")

    def matrix(self, name: str) -> TernaryMatrix:
        """Return a ternary matrix."""
        layer = self._decoder.get_submodule(name)
        if not isinstance(layer, TernaryLinear):
            codes, scale = exact_rows(self._array(name + ".weight"), name)
            return TernaryMatrix(from_codes(codes), scale)
        values, positive, negative = layer.ternary_values()
        if positive.dim() > 1:
            raise ImportFormatError(
                f"{name}: it has scales per group; a model file holds one a row, so use per='channel'"
            )
        if not torch.equal(positive, negative):
            raise ImportFormatError(f"{name}: its quantizer has two scales; a model file holds one a row")
        scales = positive.detach().cpu().float().expand(len(values)).numpy()
        return TernaryMatrix(from_codes((values.cpu().numpy() + 1).astype(np.uint8)), np.array(scales))

    def rows(self, name: str) -> Iterator[Floats]:
        """Return the embedding or the head in blocks of rows."""
        rows = self._array(name + ".weight")
        for first in range(0, len(rows), 4096):
            yield rows[first : first + 4096]
