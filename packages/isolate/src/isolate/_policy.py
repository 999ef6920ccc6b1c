"""What a host allows its extensions, and what is left of a manifest's wishes under it."""

from __future__ import annotations

import fnmatch
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import msgspec

from isolate._arguments import checked_fields
from isolate._manifest import Limits, Manifest
from isolate._worker.spelling import suggest
from isolate.errors import InvalidManifestError

LEVELS = ("none", "limits", "landlock", "bwrap")
"""The sandbox levels, from the weakest to the strongest."""
_NO_LIMIT = 1e6
"""Seconds; eleven days."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """What one extension may make its host hold or do; above one of them the extension gets an error or ends.

    Attributes:
        frame_bytes: Largest message.
        decoded_bytes: Estimated memory of one decoded message.
        queued_bytes: Bytes that wait until the extension reads them.
        unread_bytes: Decoded bytes of answers and stream items that the host's code has not taken yet.
        array_bytes: Memory of the extension's arrays that are alive in the host.
        log_bytes: Bytes of output per second that are logged; more is dropped and counted.
        open_calls: Calls from the extension that run at once.
        threads: Threads of the host for the extension's outermost blocking calls.
        nested_threads: The same for nested calls.
        callables: Callables of the host that the extension holds.

    Example:
        >>> Quotas(array_bytes=1 << 30).open_calls
        2000
    """

    frame_bytes: int = 64 << 20
    decoded_bytes: int = 128 << 20
    queued_bytes: int = 128 << 20
    unread_bytes: int = 128 << 20
    array_bytes: int = 4 << 30
    log_bytes: int = 1 << 20
    open_calls: int = 2000
    threads: int = 8
    nested_threads: int = 300
    callables: int = 10_000

    def __post_init__(self) -> None:
        checked_fields(self)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a host allows its extensions. The defaults keep extensions away from the host.

    Attributes:
        allow_sdists: Whether packages may be built from source, which runs their code while installing.
        allow_urls: Whether a dependency may name a URL.
        allow_paths: Whether a dependency may name a local file or folder.
        allow_env: Patterns of the environment variables that manifests may list; None allows any.
        variables: Environment variables for the extensions whose names match a pattern; the last match decides.
        allow_read: Folders below which manifests may list folders to read.
        allow_write: Folders below which manifests may list folders to write.
        allow_network: Whether manifests may leave the network on; the levels `landlock` and `bwrap` can turn it off.
        allow_gpus: Whether manifests may list GPUs, whose drivers are a large part of the kernel to reach.
        allow_in_process: Whether `isolated: false` runs code in the host's process.
        sandbox: The lowest sandbox level, whatever a manifest says: `none`, `limits`, `landlock` or `bwrap`.
        sandbox_required: Whether every extension must get all of its level, whatever its manifest says.
        limits: The largest resource limits that an extension gets.
        max_start: Largest `timeouts.start` in seconds.
        max_stop: Largest `timeouts.stop` in seconds.
        build_seconds: How long building an environment may take.
        wedged_seconds: A worker that handles no message for so long after a call was given up is replaced.
        quotas: What one extension may make the host hold or do.
        allow_debugger: Whether `breakpoint()` and pdb in extensions use this program's terminal. Starts and calls then
            have no time limit of their own.
        nice: How far the priority of workers is below the host's, so that they cannot starve it of processor time.
        allow_indexes: Patterns of the package indexes that manifests may name.
        allow_find_links: Patterns of the folders and pages with wheels that manifests may name, besides their own.
        index_url: The package index, None for uv's own configuration.
        find_links: Further folders or pages with wheels.

    Raises:
        TypeError: An attribute has another type, as one text where a tuple of patterns is due.
        ValueError: The level is unknown, or a number is negative.

    Example:
        >>> policy = Policy(allow_env=("HF_*",), sandbox="landlock")
        >>> policy.allow_in_process, policy.allow_sdists
        (False, False)
    """

    allow_sdists: bool = False
    allow_urls: bool = False
    allow_paths: bool = False
    allow_env: tuple[str, ...] | None = ()
    variables: Mapping[str, Mapping[str, str]] = field(default_factory=dict, hash=False)
    allow_read: tuple[str, ...] = ()
    allow_write: tuple[str, ...] = ()
    allow_network: bool = True
    allow_gpus: bool = False
    allow_in_process: bool = False
    sandbox: str = "limits"
    sandbox_required: bool = False
    limits: Limits = field(default_factory=Limits)
    max_start: float = 600.0
    max_stop: float = 30.0
    build_seconds: float = 1800.0
    wedged_seconds: float = 10.0
    allow_debugger: bool = False
    nice: int = 0
    quotas: Quotas = field(default_factory=Quotas)
    allow_indexes: tuple[str, ...] = ()
    allow_find_links: tuple[str, ...] = ()
    index_url: str | None = None
    find_links: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked_fields(self)
        if self.sandbox not in LEVELS:
            raise ValueError(f"sandbox {self.sandbox!r} is not a level; wanted one of {', '.join(LEVELS)}")


def read_policy(path: Path) -> Policy:
    """Read a policy from a TOML file with its attributes as keys.

    Raises:
        InvalidManifestError: The file cannot be read, or has an unknown key or a wrong value.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
        for names, part in ((Policy, values), (Quotas, values.get("quotas", {}))):
            known = [field.name for field in fields(names)]
            for key in part:
                if key not in known:
                    raise ValueError(f"unknown key {key!r}{suggest(key, known)}")
        return msgspec.convert(values, Policy)
    except (OSError, ValueError, msgspec.ValidationError) as failure:
        raise InvalidManifestError(f"{path}: {failure}") from None


def variables_of(name: str, policy: Policy) -> dict[str, str]:
    """Return the environment variables that the policy sets for an extension."""
    found: dict[str, str] = {}
    for pattern, values in policy.variables.items():
        if fnmatch.fnmatchcase(name, pattern):
            found.update(values)
    return found


def grant(manifest: Manifest, policy: Policy) -> tuple[Manifest, tuple[str, ...]]:
    """Apply a policy to a manifest.

    Returns:
        The manifest as the host carries it out, and a readable line for each wish that is not granted.
    """
    refused: list[str] = []
    isolated = manifest.isolated
    if not isolated and not policy.allow_in_process:
        refused.append("isolated: false: runs in a process of its own; the host must allow it: allow_in_process=True")
        isolated = True
    env = _matching(manifest.env, policy.allow_env, refused)
    read = _below(manifest.sandbox.read, policy.allow_read, "read", refused)
    write = _below(manifest.sandbox.write, policy.allow_write, "write", refused)
    level = max(manifest.sandbox.level, policy.sandbox, key=LEVELS.index)
    if level != manifest.sandbox.level and manifest.sandbox.level != "none":
        refused.append(f"sandbox.level: {manifest.sandbox.level}: the host's lowest level is {level}")
    network = manifest.sandbox.network and policy.allow_network
    if manifest.sandbox.gpus and not policy.allow_gpus and level in ("landlock", "bwrap"):
        refused.append("sandbox.gpus: the host must allow it: allow_gpus=True")
    sandbox = msgspec.structs.replace(
        manifest.sandbox,
        level=level,
        required=manifest.sandbox.required or policy.sandbox_required,
        network=network,
        gpus=manifest.sandbox.gpus and policy.allow_gpus,
        read=read,
        write=write,
    )
    timeouts = msgspec.structs.replace(
        manifest.timeouts,
        start=_most("timeouts.start", manifest.timeouts.start, policy.max_start, refused),
        stop=_most("timeouts.stop", manifest.timeouts.stop, policy.max_stop, refused),
    )
    if policy.allow_debugger:  # the user's pauses must not end what is looked at
        timeouts = msgspec.structs.replace(timeouts, start=_NO_LIMIT, call=None)
    granted = msgspec.structs.replace(
        manifest,
        isolated=isolated,
        env=env,
        sandbox=sandbox,
        timeouts=timeouts,
        limits=_limits(manifest.limits, policy.limits, refused),
    )
    return granted, tuple(refused)


def _matching(names: tuple[str, ...], allowed: tuple[str, ...] | None, refused: list[str]) -> tuple[str, ...]:
    if allowed is None:
        return names
    granted = tuple(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed))
    refused += [f"env: {name}: not in the host's allow_env" for name in names if name not in granted]
    return granted


def _below(paths: tuple[str, ...], roots: tuple[str, ...], key: str, refused: list[str]) -> tuple[str, ...]:
    granted = []
    for path in paths:
        # Resolved, so that a link cannot lead out of an allowed folder.
        real = os.path.realpath(path)
        if any(real == root or real.startswith(root.rstrip("/") + "/") for root in map(os.path.realpath, roots)):
            granted.append(real)
        else:
            refused.append(f"sandbox.{key}: {path}: not below the host's allow_{key}")
    return tuple(granted)


def _most(key: str, wanted: float, most: float, refused: list[str]) -> float:
    if wanted > most:
        refused.append(f"{key}: {wanted:g}: the host allows {most:g}")
        return most
    return wanted


def _limits(wanted: Limits, most: Limits, refused: list[str]) -> Limits:
    asked, allowed = wanted.as_numbers(), most.as_numbers()
    for name, value in asked.items():
        if name in allowed and value > allowed[name]:
            refused.append(f"limits.{name}: {value}: the host allows {allowed[name]}")
    return Limits(**{name: min(value, allowed.get(name, value)) for name, value in {**allowed, **asked}.items()})
