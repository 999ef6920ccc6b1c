"""Share one copy of a PyTorch model's weights among any number of workers."""

from zerocopy.errors import ZerocopyError

__all__ = ["ZerocopyError"]
