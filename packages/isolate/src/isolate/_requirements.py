"""Dependency lines: checked against the host's policy, and hashed to the key of an environment."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import platform
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement as PackagingError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from isolate._manifest import Manifest
from isolate._policy import Policy
from isolate.errors import InvalidRequirementError

FORMAT = 1
"""Changes how versions are chosen from the same inputs."""
LOCK_FORMAT = 2
"""Changes what a lock file says; 2: for every machine."""
OLDEST_PYTHON = "3.11"
"""A lock of an extension that names no Python is good for this one and all later ones."""
ENVIRONMENT_FORMAT = 4
"""Changes how environments are built from the same inputs; 4: packages cannot replace what the interpreter reads."""
_LINE_LIMIT = 2000
_COMMENT = re.compile(r"(^|\s)#.*$")
_HASH = re.compile(r"--hash=sha(256|384|512):[0-9a-f]{64,128}\Z")

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
    if isinstance(lines, str):  # its letters are names of packages too
        raise InvalidRequirementError(f"{owner}: dependencies is {lines!r:.80}, one text; wanted a list of lines")
    return sorted((_parse(line, policy, owner) for line in lines), key=str)


def _parse(line: str, policy: Policy, owner: str) -> Requirement:
    text = line.strip()
    if len(text) > _LINE_LIMIT or not text.isprintable():
        raise InvalidRequirementError(
            f"{owner}: {line[:80]!r} has {len(text)} characters, or one that cannot be printed; wanted one requirement "
            f"of at most {_LINE_LIMIT} characters"
        )
    if "${" in text:  # uv would put in variables of the host, which an address then carries away
        raise InvalidRequirementError(
            f"{owner}: {line!r} names a variable of the environment, which is not put in; write the value"
        )
    if text.startswith("-"):
        raise InvalidRequirementError(
            f"{owner}: {line!r} is an option, not a requirement; options come from the host's policy"
        )
    if text.startswith((".", "/", "~")) or (text.endswith(".whl") and "@" not in text):
        raise InvalidRequirementError(
            f"{owner}: {line!r} is a bare path; with Policy(allow_paths=True), write 'name @ file:///…'"
        )
    if "://" in text.split(";")[0] and not re.match(r"[\w.-]+\s*(\[[^]]*\])?\s*@", text):
        file = re.split("[@#?]", text.rstrip("/").rpartition("/")[2])[0]
        name = file.removesuffix(".git").removesuffix(".whl").partition("-")[0]
        raise InvalidRequirementError(f"{owner}: {line!r} is an address without a name; write {name + ' @ ' + text!r}")
    try:
        requirement = Requirement(text)
    except (PackagingError, RecursionError) as failure:
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


def parse_lock(text: str, policy: Policy, owner: str) -> str:
    """Return what a lock file pins, written anew: who wrote the file decides about versions and nothing else.

    Args:
        text: Its lines, as uv writes them.
        policy: What the host allows.
        owner: The extension's name and the file's, for messages.

    Raises:
        InvalidRequirementError: A line is no pinned requirement with hashes, or not allowed.
    """
    out = []
    for raw in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = _COMMENT.sub("", raw).strip()
        if not line:
            continue
        words = line.split()
        first = next((at for at, word in enumerate(words) if at and word.startswith("--")), len(words))
        body, options = " ".join(words[:first]), words[first:]
        requirement = _parse(body, policy, owner)
        refused = next((option for option in options if not _HASH.match(option)), None)
        if refused is not None:
            raise InvalidRequirementError(
                f"{owner}: the option {refused!r:.100} is not taken; renew the file with: isolate lock"
            )
        pins = [part.operator in ("==", "===") and "*" not in part.version for part in requirement.specifier]
        if not requirement.url and pins != [True]:
            raise InvalidRequirementError(f"{owner}: {body!r:.200} is not pinned; renew the file with: isolate lock")
        out.append(" \\\n    ".join((str(requirement), *options)) + "\n")
    return "".join(out)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where packages come from.

    Attributes:
        index: The package index; None for uv's own configuration.
        extra_indexes: Indexes that are asked first.
        find_links: Folders and pages with wheels.
    """

    index: str | None
    extra_indexes: tuple[str, ...]
    find_links: tuple[str, ...]


def package_sources(manifest: Manifest, policy: Policy) -> Sources:
    """Return where the packages of an extension come from.

    Raises:
        InvalidRequirementError: It names an index, a page or a folder that the host does not allow.
    """
    for index in (*((manifest.index,) if manifest.index else ()), *manifest.extra_indexes):
        if not any(fnmatch.fnmatchcase(index, pattern) for pattern in policy.allow_indexes):
            raise InvalidRequirementError(
                f"{manifest.name}: asks for the package index {index!r:.200}; the host must allow it: "
                f"Policy(allow_indexes=({index!r:.200},))"
            )
    links = []
    for link in manifest.find_links:
        place = link if "://" in link else os.path.realpath(manifest.directory / link)
        own = "://" not in link and Path(place).is_relative_to(os.path.realpath(manifest.directory))
        if not own and not any(fnmatch.fnmatchcase(place, pattern) for pattern in policy.allow_find_links):
            raise InvalidRequirementError(
                f"{manifest.name}: asks for wheels from {place!r:.200}, which is outside of its folder; the host must "
                f"allow it: Policy(allow_find_links=({place!r:.200},))"
            )
        links.append(place)
    return Sources(manifest.index or policy.index_url, manifest.extra_indexes, (*links, *policy.find_links))


def inputs_hash(
    requirements: list[Requirement],
    constraints: list[Requirement],
    python: str | None,
    sources: Sources,
    policy: Policy,
    excluded: list[str],
) -> str:
    """Return a hash of everything that decides what gets installed, before versions are chosen."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "python": python or platform.python_version(),
        "implementation": sys.implementation.cache_tag if python is None else "",
        "platform": sysconfig.get_platform(),
        "requirements": sorted(map(str, requirements)),
        "constraints": sorted(map(str, constraints)),
        "excluded": sorted(excluded),
        "policy": [policy.allow_sdists, sources.index, sorted(sources.find_links), *sources.extra_indexes],
    }
    local = {item.name: digest for item in requirements if (digest := local_digest(item)) is not None}
    if local:
        content["local"] = local
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def lock_hash(
    requirements: list[Requirement], constraints: list[Requirement], python: str | None, excluded: list[str]
) -> str:
    """Return a hash of what a lock file is made for; it is the same on every machine and under every policy."""
    lists = [sorted(map(str, requirements)), sorted(map(str, constraints)), sorted(excluded)]
    content = json.dumps([LOCK_FORMAT, *lists, ".".join((python or "").split(".")[:2])])
    return hashlib.sha256(content.encode()).hexdigest()


def local_digest(requirement: Requirement) -> str | None:
    """Return a hash of the local file or folder that a requirement names; None if it names none.

    An edited local dependency has another hash, so it is built again.
    """
    if not requirement.url or not requirement.url.startswith("file:"):
        return None
    root = Path(unquote(urlsplit(requirement.url).path))
    found = [Path(place, name) for place, _, names in os.walk(root) for name in names]
    files = [root] if root.is_file() else sorted(path for path in found if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        if not {".git", "__pycache__", "build"}.intersection(path.relative_to(root).parts):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # an editor's temporary file
            digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def environment_key(inputs: str, lock: str | None) -> str:
    """Return the key of an environment: a hash of its inputs and of the extension's own lock file."""
    return hashlib.sha256(f"{ENVIRONMENT_FORMAT}\n{inputs}\n{lock or ''}".encode()).hexdigest()[:32]
