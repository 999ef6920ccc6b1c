"""Dependency lines: checked against the host's policy, and hashed to the key of an environment."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import sysconfig

from packaging.requirements import InvalidRequirement as PackagingError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from isolate._policy import Policy
from isolate.errors import InvalidRequirementError

FORMAT = 1
"""Changes what a lock file is made for."""
ENVIRONMENT_FORMAT = 3
"""Changes how environments are built from the same inputs; 3: no hard links, a table of all files."""

# sysconfig fills its table on first use, and before Python 3.12 without a lock: a second thread then sees it half
# filled. Environments are built concurrently in threads, so it is filled here, under the import lock.
sysconfig.get_config_vars()


def parse(lines: tuple[str, ...], policy: Policy, owner: str) -> list[Requirement]:
    """Return the requirements of one extension, sorted.

    Args:
        lines: Dependency lines of a manifest.
        policy: What the host allows.
        owner: The extension's name, for messages.

    Raises:
        InvalidRequirementError: A line is malformed or not allowed.
    """
    return sorted((_parse(line, policy, owner) for line in lines), key=str)


def _parse(line: str, policy: Policy, owner: str) -> Requirement:
    text = line.strip()
    if text.startswith("-"):
        raise InvalidRequirementError(
            f"{owner}: {line!r} is an option, not a requirement; options come from the host's policy"
        )
    if text.startswith((".", "/", "~")) or (text.endswith(".whl") and "@" not in text):
        raise InvalidRequirementError(
            f"{owner}: {line!r} is a bare path; with Policy(allow_paths=True), write 'name @ file:///…'"
        )
    try:
        requirement = Requirement(text)
    except PackagingError as failure:
        reason = str(failure).splitlines()[0]
        raise InvalidRequirementError(
            f"{owner}: {line!r} is not a requirement: {reason}; wanted 'name', 'name>=1,<2', …"
        ) from None
    if requirement.url:
        is_path = requirement.url.startswith("file:") or "://" not in requirement.url
        if is_path and not policy.allow_paths:
            raise InvalidRequirementError(
                f"{owner}: {line!r} names a local path; the host must allow it: Policy(allow_paths=True)"
            )
        if not is_path and not policy.allow_urls:
            raise InvalidRequirementError(
                f"{owner}: {line!r} names a URL; the host must allow it: Policy(allow_urls=True)"
            )
    requirement.name = canonicalize_name(requirement.name)
    return requirement


def inputs_hash(
    requirements: list[Requirement],
    constraints: list[Requirement],
    python: str | None,
    policy: Policy,
    excluded: list[str],
) -> str:
    """Return a hash of everything that decides what gets installed, before versions are chosen."""
    content = {
        "format": FORMAT,
        "python": python or platform.python_version(),
        "implementation": sys.implementation.cache_tag if python is None else "",
        "platform": sysconfig.get_platform(),
        "requirements": sorted(map(str, requirements)),
        "constraints": sorted(map(str, constraints)),
        "excluded": sorted(excluded),
        "policy": [policy.allow_sdists, policy.index_url, sorted(policy.find_links)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def environment_key(inputs: str, lock: str | None) -> str:
    """Return the key of an environment: a hash of its inputs and of the extension's own lock file."""
    return hashlib.sha256(f"{ENVIRONMENT_FORMAT}\n{inputs}\n{lock or ''}".encode()).hexdigest()[:32]
