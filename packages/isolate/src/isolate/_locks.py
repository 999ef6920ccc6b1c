"""What the lock of an extension is made for, and how uv and pip are asked to choose and to fetch versions."""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path

from packaging.requirements import Requirement

from isolate._manifest import Manifest
from isolate._places import read_regular
from isolate._policy import Policy
from isolate._requirements import OLDEST_PYTHON, Sources, inputs_hash, lock_hash, package_sources, parse, parse_lock
from isolate.errors import EnvironmentBuildError, LockOutOfDateError

_HEADER = "# isolate lock, inputs "
_LIMIT = 16 << 20


class Locks:
    """The requirements of one extension, checked against the host's policy.

    Args:
        manifest: The extension's.
        policy: The host's.
        excluded: Distributions not to install, because a lower layer provides them.

    Attributes:
        manifest: The extension's.
    """

    def __init__(self, manifest: Manifest, policy: Policy, excluded: list[str]) -> None:
        self.manifest = manifest
        self._policy = policy
        self._excluded = excluded

    @cached_property
    def requirements(self) -> list[Requirement]:
        """What it asks for."""
        return parse(self.manifest.dependencies, self._policy, self.manifest.name)

    @cached_property
    def constraints(self) -> list[Requirement]:
        """What limits the versions of that and of all that it needs."""
        return parse(self.manifest.constraints, self._policy, self.manifest.name)

    @cached_property
    def sources(self) -> Sources:
        """Where packages come from."""
        return package_sources(self.manifest, self._policy)

    @property
    def text(self) -> str:
        """The requirements as lines."""
        return "\n".join(map(str, self.requirements))

    @cached_property
    def inputs(self) -> str:
        """A hash of everything that decides what gets installed on this machine."""
        python = self.manifest.python
        return inputs_hash(self.requirements, self.constraints, python, self.sources, self._policy, self._excluded)

    @property
    def header(self) -> str:
        """The first line of the extension's own lock file."""
        return _HEADER + lock_hash(self.requirements, self.constraints, self.manifest.python, self._excluded)

    @cached_property
    def own(self) -> str | None:
        """What the extension's own lock pins, see `parse_lock`; None if it has none.

        It is read once: what is built has the key of what was read.

        Raises:
            LockOutOfDateError: It was made for other requirements.
            InvalidRequirementError: It says more than which versions to install, or what the policy does not allow.
        """
        name, file = self.manifest.name, self.manifest.lock_file
        try:
            text = read_regular(self.manifest.directory / file, _LIMIT).decode()
        except FileNotFoundError:
            return None
        except ValueError as failure:
            raise LockOutOfDateError(f"{name}: {file} cannot be read: {failure}") from None
        except OSError as failure:
            raise EnvironmentBuildError(f"{name}: {file} cannot be read: {failure}") from failure
        first, _, rest = text.partition("\n")
        if first != self.header:
            raise LockOutOfDateError(
                f"{name}: {file} was made for other requirements or another Python; renew it with: isolate lock"
            )
        return parse_lock(rest, self._policy, f"{name}: {file}")

    @property
    def _only_wheels(self) -> list[str]:
        return [] if self._policy.allow_sdists else ["--only-binary", ":all:"]

    @property
    def _links(self) -> list[str]:
        return [part for link in self.sources.find_links for part in ("--find-links", link)]

    @property
    def index_arguments(self) -> list[str]:
        """The arguments for uv that say where packages come from."""
        found = ["--default-index", self.sources.index] if self.sources.index else []
        found += [part for index in self.sources.extra_indexes for part in ("--index", index)]
        return [*found, *self._links, *self._only_wheels]

    def compile_arguments(self, scratch: Path, universal: bool) -> list[str]:
        """Return the arguments for uv that choose versions for this machine, or for all of them."""
        extra = []
        if self.constraints:
            (scratch / "constraints.txt").write_text("\n".join(map(str, self.constraints)), "utf-8")
            extra += ["--constraints", str(scratch / "constraints.txt")]
        if self._excluded:
            # uv leaves a package out if it is overridden with a requirement that never applies.
            lines = [f'{name} ; python_version < "0"' for name in self._excluded]
            (scratch / "overrides.txt").write_text("\n".join(lines), "utf-8")
            extra += ["--overrides", str(scratch / "overrides.txt")]
        python = ["--python", self.manifest.python or sys.executable]
        if universal:
            python += ["--universal", "--python-version", self.manifest.python or OLDEST_PYTHON]
        options = ["--generate-hashes", "--no-header", "--no-annotate", *python, *extra]
        return ["pip", "compile", "-", *options, *self.index_arguments]

    def download_arguments(self, lock: str, folder: Path, scratch: Path) -> list[str]:
        """Return the arguments for uv that run pip to download the wheels of a lock."""
        list_file = scratch / "requirements.txt"
        list_file.write_text(lock, "utf-8")
        where = ["--index-url", self.sources.index] if self.sources.index else []
        where += [part for index in self.sources.extra_indexes for part in ("--extra-index-url", index)]
        python = self.manifest.python or sys.executable
        run = ["run", "--no-project", "--isolated", "--with", "pip", "--python", python, "python", "-m", "pip"]
        options = ["--quiet", "--no-deps", "--dest", str(folder.absolute()), "-r", str(list_file)]
        return [*run, "download", *options, *where, *self._links, *self._only_wheels]
