"""Code that came with a checkpoint (`trust_remote_code`): its sources travel with the model, by content.

The publisher's transformers keeps such code in modules that no other process can import. The skeleton takes their
sources along. A loader that allows it runs them as modules of its own, which are called after their content, so that
two revisions of one model's code get along.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from torch import nn

from zerocopy.errors import RemoteCodeError

_ROOT = "transformers_modules"
_OURS = re.compile(r"zerocopy_remote_[0-9a-f]{16}\.")
_lock = threading.Lock()


def is_remote(module: object) -> bool:
    """Return whether a module's name is one of code that came with a checkpoint."""
    return isinstance(module, str) and _original(module).startswith(f"{_ROOT}.")


def is_foreign(model: nn.Module) -> bool:
    """Return whether a model has a class of code that came with a checkpoint."""
    return any(is_remote(type(part).__module__) for part in model.modules())


def _original(module: str) -> str:
    """Return the name that a module had in the process that downloaded it."""
    return _OURS.sub("", module, count=1)


def refuse_publishing(modules: Iterable[str]) -> RemoteCodeError:
    """Return the error of a publisher that does not allow the code."""
    return RemoteCodeError(
        f"the model's classes come from code of its checkpoint ({', '.join(sorted(modules))}), which no other process "
        f"can import: read that code, and pass trust_remote_code=True here and to load()"
    )


def refuse_loading(sources: Mapping[str, str]) -> RemoteCodeError:
    """Return the error of a loader that does not allow the code."""
    return RemoteCodeError(
        f"the model takes code of its checkpoint along ({', '.join(sorted(sources))}), and nothing of it was run: "
        f"if you trust the publisher, pass trust_remote_code=True to load()"
    )


def sources_of(modules: Iterable[str]) -> dict[str, str]:
    """Return the sources, by original name, of all modules of the packages that some modules are in.

    Raises:
        RemoteCodeError: A module has no source.
    """
    found: dict[str, str] = {}
    for name in modules:
        loader = getattr(sys.modules.get(name), "__loader__", None)
        package = _original(name).rpartition(".")[0]
        if isinstance(loader, _Loader):
            found.update({other: text for other, text in loader.sources.items() if other.startswith(f"{package}.")})
            continue
        file = getattr(sys.modules.get(name), "__file__", None)
        try:
            folder = Path(file or "").parent
            found.update({f"{package}.{path.stem}": path.read_text() for path in sorted(folder.glob("*.py"))})
        except (OSError, UnicodeDecodeError) as error:
            raise RemoteCodeError(f"the source of {name} cannot be read: {error}") from error
        if _original(name) not in found:
            raise RemoteCodeError(f"{name} has no source in {folder}")
    return {name: text for name, text in found.items() if not name.endswith(".__init__")}


class Modules:
    """The modules made of some sources in this process.

    Args:
        sources: By original name.
    """

    def __init__(self, sources: Mapping[str, str]) -> None:
        content = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:16]
        self._prefix = f"zerocopy_remote_{content}"
        self._sources = sources
        with _lock:
            if not any(isinstance(each, _Finder) and each.prefix == self._prefix for each in sys.meta_path):
                sys.meta_path.append(_Finder(self._prefix, dict(sources)))

    def name_of(self, module: str) -> str:
        """Return the name, in this process, of a module that a pickle names."""
        original = _original(module)
        return f"{self._prefix}.{original}" if original in self._sources else module


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of one set of sources."""

    def __init__(self, prefix: str, sources: Mapping[str, str]) -> None:
        self.prefix = prefix
        self._sources = sources

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002  # the interface of finders
        target: ModuleType | None = None,  # noqa: ARG002  # the same
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how to make a module, or None if it is none of these."""
        root, _, original = fullname.partition(".")
        if root != self.prefix:
            return None
        package = any(name.startswith(f"{original}.") or not original for name in self._sources)
        if original not in self._sources and not package:
            return None
        loader = _Loader(original, self._sources)
        return importlib.util.spec_from_loader(
            fullname, loader, origin=loader.get_filename(fullname), is_package=package
        )


class _Loader(importlib.abc.ExecutionLoader):
    """Runs one source. Tracebacks and `inspect` find its lines."""

    def __init__(self, original: str, sources: Mapping[str, str]) -> None:
        self.sources = sources
        self._original = original

    def get_source(self, fullname: str) -> str:  # noqa: ARG002  # the interface of loaders
        """Return the source; a package has none."""
        return self.sources.get(self._original, "")

    def get_filename(self, fullname: str) -> str:
        """Return what tracebacks show."""
        return f"{fullname.replace('.', '/')}.py"

    def is_package(self, fullname: str) -> bool:  # noqa: ARG002  # the interface of loaders
        """Return whether other modules lie in it."""
        return self._original not in self.sources
