"""Share one copy of a PyTorch model's weights among any number of workers.

`zerocopy.on_ray` holds what needs Ray, `zerocopy.errors` every error.
"""

from __future__ import annotations

from zerocopy import _moved as _moved
from zerocopy._checkpoint import publish_file, save_aligned
from zerocopy._directory import sweep
from zerocopy._flatten import Flat, flatten, rebuild
from zerocopy._follow import Live, follow
from zerocopy._invoke import call_model, forget
from zerocopy._pipeline import ModelProxy, rewrite_pipeline
from zerocopy._publish import current, publish, unpublish
from zerocopy._ref import ModelRef
from zerocopy._report import Report, report
from zerocopy._rewrite import extract_tensors, replace_tensors
from zerocopy._writes import Written, strict, written
from zerocopy.errors import ZerocopyError

__all__ = [
    "Flat",
    "Live",
    "ModelProxy",
    "ModelRef",
    "Report",
    "Written",
    "ZerocopyError",
    "call_model",
    "current",
    "extract_tensors",
    "flatten",
    "follow",
    "forget",
    "publish",
    "publish_file",
    "rebuild",
    "replace_tensors",
    "report",
    "rewrite_pipeline",
    "save_aligned",
    "strict",
    "sweep",
    "unpublish",
    "written",
]
