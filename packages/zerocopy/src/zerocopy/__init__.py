"""Share one copy of a PyTorch model's weights among any number of workers."""

from zerocopy.directory import sweep
from zerocopy.errors import ZerocopyError
from zerocopy.flatten import Flat, flatten, rebuild
from zerocopy.isolation import Written, strict, written
from zerocopy.live import Live, follow
from zerocopy.publish import current, publish, unpublish
from zerocopy.ref import ModelRef

__all__ = [
    "Flat",
    "Live",
    "ModelRef",
    "Written",
    "ZerocopyError",
    "current",
    "flatten",
    "follow",
    "publish",
    "rebuild",
    "strict",
    "sweep",
    "unpublish",
    "written",
]
