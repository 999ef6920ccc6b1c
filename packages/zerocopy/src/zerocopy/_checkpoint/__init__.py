"""From checkpoints to segments: read their forms, fit them to a model, and publish without the heap."""

from __future__ import annotations

from zerocopy._checkpoint.aligned import save_aligned
from zerocopy._checkpoint.publishing import publish_file

__all__ = ["publish_file", "save_aligned"]
