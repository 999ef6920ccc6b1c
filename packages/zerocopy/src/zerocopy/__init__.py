"""Share one copy of a PyTorch model's weights among any number of workers.

Names are imported at their first use. `zerocopy.on_ray` holds what needs Ray, `zerocopy.errors` every error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zerocopy import _moved as _moved
from zerocopy._lazy import importer
from zerocopy.errors import ZerocopyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from zerocopy._checkpoint import publish_file, save_aligned
    from zerocopy._directory import sweep
    from zerocopy._flatten import Flat, flatten, rebuild
    from zerocopy._follow import Live, follow
    from zerocopy._hub import from_pretrained
    from zerocopy._invoke import call_model, forget
    from zerocopy._pipeline import ModelProxy, rewrite_pipeline
    from zerocopy._publish import current, publish, unpublish
    from zerocopy._ref import ModelRef
    from zerocopy._report import Report, report
    from zerocopy._rewrite import extract_tensors, replace_tensors
    from zerocopy._share import share
    from zerocopy._writes import Written, strict, written

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
    "from_pretrained",
    "publish",
    "publish_file",
    "rebuild",
    "replace_tensors",
    "report",
    "rewrite_pipeline",
    "save_aligned",
    "share",
    "strict",
    "sweep",
    "unpublish",
    "written",
]

__getattr__: Callable[[str], Any] = importer(
    {
        "_checkpoint": ("publish_file", "save_aligned"),
        "_directory": ("sweep",),
        "_flatten": ("Flat", "flatten", "rebuild"),
        "_follow": ("Live", "follow"),
        "_hub": ("from_pretrained",),
        "_invoke": ("call_model", "forget"),
        "_pipeline": ("ModelProxy", "rewrite_pipeline"),
        "_publish": ("current", "publish", "unpublish"),
        "_ref": ("ModelRef",),
        "_report": ("Report", "report"),
        "_rewrite": ("extract_tensors", "replace_tensors"),
        "_share": ("share",),
        "_writes": ("Written", "strict", "written"),
    }
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
