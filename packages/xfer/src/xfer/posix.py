"""The one place that knows that some systems have no fcntl: importing xfer works there, sharing memory does not."""

import sys
from typing import Any

from xfer.errors import UnsupportedPlatformError

try:
    import fcntl as _fcntl

    fcntl: Any = _fcntl
except ImportError:
    fcntl = None


def require() -> None:
    """Refuse on systems without POSIX file locks.

    Raises:
        UnsupportedPlatformError: This is Windows, or a Python without fcntl.
    """
    if fcntl is None:
        raise UnsupportedPlatformError(
            f"sharing memory between processes needs POSIX file locks, which {sys.platform} lacks; "
            "use WSL2, or only xfer.ops and xfer.GpuMemoryManager, which work here"
        )
