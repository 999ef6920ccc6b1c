"""Random language models of any shape, written straight as model files."""

from __future__ import annotations

import numpy as np

from ternary.llm._matrices import TernaryMatrix, from_codes
from ternary.llm._modelfile import matrix_shapes
from ternary.llm._source import write_model


class RandomSource:
    """Random norms, ternary matrices and embeddings under the names of a model file."""

    def __init__(self, config, tokenizer=b"", **metadata):
        self.config, self.tokenizer, self.metadata = config, tokenizer, metadata
        self._random = np.random.default_rng(0)
        self._sizes = {
            "attention_sub_norm": config.heads * config.head_size,
            "feed_sub_norm": config.inner,
        }

    def vector(self, name):
        """Random norms near 1, and biases."""
        if name.endswith(".bias"):
            return self._random.standard_normal(matrix_shapes(self.config)[name.split(".")[2]][0], np.float32)
        size = self._sizes.get(name.split(".")[-1], self.config.hidden)
        return (1 + 0.1 * self._random.standard_normal(size)).astype(np.float32)

    def matrix(self, name):
        """Random codes with one scale."""
        outputs, inputs = matrix_shapes(self.config)[name.split(".")[-1]]
        codes = self._random.integers(0, 3, (outputs, inputs), np.uint8)
        return TernaryMatrix(from_codes(codes), np.full(outputs, 1 / np.sqrt(inputs), np.float32))

    def rows(self, name):
        """Normal numbers, in blocks; every block of the embedding and of the head differs."""
        for first in range(0, self.config.vocabulary, 4096):
            count = min(4096, self.config.vocabulary - first)
            yield self._random.standard_normal((count, self.config.hidden), np.float32)


def write_random(config, path, **options):
    """Write a model file with random weights."""
    write_model(RandomSource(config, **options), path)
