"""Share one copy of a PyTorch model's weights among any number of workers.

``zerocopy.on_ray`` holds what needs Ray, ``zerocopy.errors`` every error.
"""

from zerocopy.checkpoint import publish_file, save_aligned
from zerocopy.directory import sweep
from zerocopy.errors import ZerocopyError
from zerocopy.flatten import Flat, flatten, rebuild
from zerocopy.invoke import call_model, forget
from zerocopy.isolation import Written, strict, written
from zerocopy.live import Live, follow
from zerocopy.pipeline import ModelProxy, rewrite_pipeline
from zerocopy.publish import current, publish, unpublish
from zerocopy.ref import ModelRef
from zerocopy.report import Report, report
from zerocopy.rewrite import extract_tensors, replace_tensors

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
