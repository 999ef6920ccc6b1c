"""share: many processes start together, one builds and publishes the model, and all map it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from zerocopy import _directory as places
from zerocopy._arena import Arena, InArena
from zerocopy._checkpoint.files import files_of
from zerocopy._checkpoint.publishing import publish_checkpoint
from zerocopy._hub import publish_pretrained
from zerocopy._identity import code_of
from zerocopy._lease import TEMPORARY, close, gate, opened
from zerocopy._publish import Options, from_base, publish_made
from zerocopy._ref import ModelRef, ref_of
from zerocopy._segment.checking import open_segment
from zerocopy.errors import (
    CorruptSegmentError,
    OtherBuildError,
    SegmentGoneError,
    ShareTimeoutError,
    UntrustedPathError,
)

_PAUSE = 0.02  # seconds between two looks of a process that waits
Progress = Callable[[str], object]


def share(  # long because its documentation counts too
    name: str,
    build_or_checkpoint: Callable[[], Any] | str | os.PathLike[str],
    *,
    build: Callable[[], Any] | None = None,
    auto_class: Any = None,
    timeout: float = 600,
    directory: str | os.PathLike[str] | None = None,
    on_wait: Progress | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Return a model that any number of processes share, built by one of them.

    Call it in every worker, with the same arguments. The leader builds the model inside the segment, and the others
    wait and map it. If the leader is killed, another takes its place. The model stays as long as any process has it.
    A build whose code, defaults, or constants, functions and classes of its own module differ is another build.

    Args:
        name: The name to share it under.
        build_or_checkpoint: A function that returns the model, a checkpoint as for `publish_file`, or, without
            `build`, a folder or id for `from_pretrained`.
        build: The model's build function for a checkpoint.
        auto_class: The class for a pretrained folder or id, as for `from_pretrained`.
        timeout: Seconds to wait for the leader.
        directory: The segment directory; shared memory by default.
        on_wait: Called with a line of text about the leader's progress while this process waits.
        trust_remote_code: Allow code of the checkpoint, in the leader and in this process; see `publish`.

    Returns:
        The model.

    Raises:
        OtherBuildError: The name is shared from another build or checkpoint.
        ShareTimeoutError: The leader was not done in time.
        ValueError: The name cannot be part of a file name, or the timeout is no number of seconds.

    Example:
        >>> import torch, zerocopy
        >>> def build():
        ...     return torch.nn.Linear(4, 2)
        >>> model = zerocopy.share("doc-share", build)
        >>> zerocopy.share("doc-share", build) is model
        True
        >>> zerocopy.unpublish(zerocopy.current("doc-share"))
    """
    if isinstance(timeout, bool | str) or not timeout >= 0:
        raise ValueError(f"timeout {timeout!r} is no number of seconds")
    folder = places.prepare(directory)
    source, told = _identity(build_or_checkpoint, build, auto_class), ""
    lock = folder / f"{places.check_name(name)}@0-0{places.SUFFIX}.gate{TEMPORARY}"
    how = Options(name, None, directory, source=source, tick=_Note(lock), trust_remote_code=trust_remote_code)
    end = time.monotonic() + timeout
    while True:
        if (model := _existing(folder, how)) is not None:
            return model
        with gate(lock, wait=False) as leads:
            if leads:
                return _lead(folder, build_or_checkpoint, build, auto_class, how)
        line = _progress(lock, name)
        if on_wait is not None and line != told:
            on_wait(told := line)
        if time.monotonic() > end:
            raise ShareTimeoutError(f"{line}, for more than {timeout} s; raise timeout= or look at that process")
        time.sleep(_PAUSE)


def _existing(folder: Path, how: Options) -> Any:
    """Load the newest version of a name, or return None if there is none.

    Raises:
        OtherBuildError: It was shared from something else.
    """
    name, source = how.name or "", how.source
    for path in places.candidates(folder, name):
        try:
            head = open_segment(path)
            close(head.fd)
            if head.manifest.source and head.manifest.source.splitlines()[-1] != source.splitlines()[-1]:
                raise OtherBuildError(
                    f"{name!r} is shared from {head.manifest.source.splitlines()[0]}, which differs from this "
                    f"{source.splitlines()[0]}: use another name, or end the processes that share the other one"
                )
            return ref_of(path).load(trust_remote_code=how.trust_remote_code)
        except SegmentGoneError:
            continue
        except (CorruptSegmentError, UntrustedPathError):
            continue  # a leader makes a new version
    return None


def _lead(folder: Path, what: Any, build: Callable[[], Any] | None, auto_class: Any, how: Options) -> Any:
    """Publish and load the model, once what a killed leader left is gone, unless another leader has done so."""
    model = _existing(folder, how)
    if model is not None:
        return model
    _clear(folder, how.name or "")
    return _publish(what, build, auto_class, how).load(trust_remote_code=how.trust_remote_code)


def _publish(what: Any, build: Callable[[], Any] | None, auto_class: Any, how: Options) -> ModelRef:
    if not isinstance(what, str | os.PathLike):

        def make(arena: Arena | None) -> Any:
            assert arena is not None
            with InArena(arena):
                return what()

        return publish_made(make, from_base(None), how, in_arena=True)
    if build is not None:
        return publish_checkpoint(what, build, how)
    return publish_pretrained(what, auto_class, how)


def _clear(folder: Path, name: str) -> None:
    """Remove what a killed leader left, so that its memory is free before this one builds."""
    end = time.monotonic() + 5
    for path in folder.glob(f"{name}@*{places.SUFFIX}{TEMPORARY}"):
        # The kernel gives a killed process's locks back one after the other.
        while not places.remove_if_free(str(path)) and time.monotonic() < end and not _is_alive(path):
            time.sleep(_PAUSE)


def _is_alive(path: Path) -> bool:
    """Return whether an unfinished file has been held for a while, so that its publisher is not a killed leader."""
    with suppress(FileNotFoundError):
        return time.time() - path.lstat().st_mtime > 60
    return False


class _Note:
    """Writes the leader's progress into its lock file, for the processes that wait."""

    def __init__(self, lock: Path) -> None:
        self._lock = lock
        self._done = 0
        self._next = 0.0

    def __call__(self, nbytes: int) -> None:
        """Count bytes, and write the sum now and then."""
        self._done += nbytes
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.1
            text = json.dumps({"pid": os.getpid(), "done": self._done}).encode()
            with suppress(OSError):
                fd = opened(self._lock, os.O_WRONLY)
                try:
                    os.ftruncate(fd, os.pwrite(fd, text, 0))
                finally:
                    close(fd)


def _progress(lock: Path, name: str) -> str:
    try:
        fd = opened(lock, os.O_RDONLY)
        try:
            noted = json.loads(os.pread(fd, 1000, 0))
        finally:
            close(fd)
        return f"process {noted['pid']} publishes {name!r}: {noted['done'] >> 20} MiB done"
    except (OSError, ValueError, KeyError, TypeError):
        return f"another process builds {name!r}"


def _identity(what: Any, build: Callable[[], Any] | None, auto_class: Any) -> str:
    """Return what tells one build or checkpoint from another: a line for people, then a digest."""
    if isinstance(what, str | os.PathLike):
        kind = f"{os.fspath(what)}"
        parts: list[Any] = [kind, getattr(auto_class, "__name__", auto_class)]
        if Path(what).exists():
            files = files_of(what) if build is not None or Path(what).is_file() else sorted(Path(what).iterdir())
            stats = [(file.name, file.stat()) for file in files if file.is_file()]
            parts = [(file, status.st_size, status.st_mtime_ns) for file, status in stats] + parts[1:]
        if build is not None:
            parts.append(code_of(build))
    else:
        kind = f"{getattr(what, '__module__', '')}.{getattr(what, '__qualname__', type(what).__name__)}"
        parts = [code_of(what)]
    return f"{kind}\n{hashlib.sha256(repr(parts).encode()).hexdigest()}"
