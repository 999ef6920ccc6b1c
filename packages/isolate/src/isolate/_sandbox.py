"""The host's side of confinement: what each level can do on this machine, and the command line for bwrap."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isolate._manifest import Manifest
from isolate._worker.confine import landlock_version
from isolate.errors import SandboxUnavailableError

LEVELS = ("none", "limits", "landlock", "bwrap")
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys/devices/system/cpu", "/opt")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """What confines a running extension.

    Attributes:
        requested: The manifest's level.
        enforced: What the kernel granted, as readable lines; empty means dependency isolation only.
        missing: What was asked for and is not there.
    """

    requested: str
    enforced: tuple[str, ...]
    missing: tuple[str, ...]


def available() -> dict[str, str]:
    """For each level an empty string, or why this machine cannot provide it."""
    linux = sys.platform == "linux"
    return {
        "none": "",
        "limits": "" if linux else "needs Linux",
        "landlock": "" if landlock_version() else "the kernel has no landlock",
        "bwrap": "" if shutil.which("bwrap") else "bwrap is not installed",
    }


def check(manifest: Manifest) -> None:
    """Refuse to start what requires a sandbox that is not there.

    Raises:
        SandboxUnavailableError: The level is required and this machine cannot provide it.
    """
    why = available()[manifest.sandbox.level]
    if why and manifest.sandbox.required:
        raise SandboxUnavailableError(f"{manifest.name}: the sandbox level {manifest.sandbox.level} is required: {why}")


def _readable(manifest: Manifest, environment: Path, extra: list[str]) -> list[str]:
    own = [
        str(environment),
        str(manifest.directory),
        str(Path(__file__).parent / "_worker"),
        *manifest.sandbox.read,
        *extra,
    ]
    # The environment's python is a link into the interpreter's own folder.
    own.append(str((environment / "bin" / "python").resolve().parents[1]))
    return [path for path in (*_SYSTEM, *own) if os.path.exists(path)]


def worker_config(manifest: Manifest, environment: Path | None, extra: list[str]) -> dict[str, Any]:
    """What the worker applies to itself."""
    wanted = manifest.sandbox
    level = wanted.level if not available()[wanted.level] else "limits"
    writable = [*wanted.write, *(path for path in _DEVICES if os.path.exists(path))]
    return {
        "level": level,
        "required": wanted.required,
        "limits": manifest.limits.as_numbers(),
        "read": _readable(manifest, environment, extra) if environment is not None else [],
        "write": writable,
        "network": wanted.network,
    }


def command_prefix(manifest: Manifest, environment: Path, extra: list[str]) -> list[str]:
    """The bwrap command that a worker runs under; empty for the other levels."""
    program = shutil.which("bwrap")
    if manifest.sandbox.level != "bwrap" or program is None:
        return []
    command = [
        program,
        "--die-with-parent",
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]
    # Before what is bound below it: an environment may lie in /tmp.
    if "/tmp" not in manifest.sandbox.write:
        command += ["--tmpfs", "/tmp"]
    if not manifest.sandbox.network:
        command.append("--unshare-net")
    for path in _readable(manifest, environment, extra):
        if path != "/proc":
            command += ["--ro-bind", path, path]
    for path in manifest.sandbox.write:
        command += ["--bind", path, path]
    return [*command, "--"]


def report(manifest: Manifest, prefix: list[str], enforced: list[str], missing: list[str]) -> SandboxReport:
    """The honest sum of what host and worker did."""
    wanted = manifest.sandbox
    why = available()[wanted.level]
    gone = [*missing, *([f"level {wanted.level}: {why}; running with limits only"] if why else [])]
    done = list(enforced)
    if prefix:
        done.insert(0, "bwrap: own process ids, read-only system" + ("" if wanted.network else ", no network"))
    if not wanted.network and wanted.level in ("none", "limits"):
        gone.append(f"no network: level {wanted.level} cannot bar it")
    return SandboxReport(wanted.level, tuple(done), tuple(gone))
