"""The host's side of confinement: what each level needs, the command line for bwrap, and the report."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from isolate._manifest import Manifest
from isolate._worker.confine import landlock_version
from isolate.errors import SandboxUnavailableError

_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/sys/devices/system/cpu")
# Not the whole of /etc: root reads its secrets as their owner, even without any capability.
_ETC = (
    *("alternatives", "ca-certificates", "ca-certificates.conf", "fonts", "gai.conf", "group", "host.conf", "hosts"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types", "nsswitch.conf", "os-release", "passwd"),
    *("pki", "protocols", "resolv.conf", "services", "ssl/certs", "ssl/openssl.cnf", "timezone"),
)
_KERNEL_SETTINGS = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")
_GPU_NODES = (
    "nvidia[0-9]*",
    "nvidiactl",
    "nvidia-uvm*",
    "nvidia-modeset",
    "nvidia-caps/*",
    "dri/renderD*",
    "kfd",
    "dxg",
)
_GPU_FACTS = ("/proc/driver", "/sys/bus/pci", "/sys/class/drm", "/sys/class/kfd", "/sys/devices", "/sys/module")
_NODES = Path("/dev")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random")


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """What confines a running extension, as the worker found by trying to break out.

    Attributes:
        requested: The level that the manifest and the host's policy ask for.
        enforced: What holds, as readable lines; empty means dependency isolation only.
        missing: What the level should enforce and does not.
        tried: For each attempt to break out whether it succeeded; empty below level `landlock`.
    """

    requested: str
    enforced: tuple[str, ...]
    missing: tuple[str, ...]
    tried: MappingProxyType[str, bool] | dict[str, bool]


def available() -> dict[str, str]:
    """Return for each level an empty string, or why this machine cannot provide it."""
    linux = sys.platform == "linux"
    return {
        "none": "",
        "limits": "" if linux else "needs Linux",
        "landlock": "" if landlock_version() else "the kernel has no landlock",
        "bwrap": "" if shutil.which("bwrap") else "bwrap is not installed",
    }


def check(manifest: Manifest) -> None:
    """Refuse to start what requires a sandbox that this machine does not have.

    Raises:
        SandboxUnavailableError: The level is required and not available.
    """
    why = available()[manifest.sandbox.level]
    if why and manifest.sandbox.required:
        raise SandboxUnavailableError(f"{manifest.name}: the sandbox level {manifest.sandbox.level} is required: {why}")


def unmoved(paths: Iterable[str]) -> list[str]:
    """Return those of the granted folders that still are where they were when they were granted.

    An extension that may write to the folder above can have put a link in the place of one, which leads anywhere.
    """
    return [path for path in paths if os.path.realpath(path) == path]


def gpu_nodes(manifest: Manifest) -> list[str]:
    """Return the device nodes of GPUs that a confined worker may use."""
    if not manifest.sandbox.gpus:
        return []
    return sorted(str(path) for pattern in _GPU_NODES for path in _NODES.glob(pattern))


def _readable(manifest: Manifest, environment: Path, extra: list[str]) -> list[str]:
    own = [
        str(environment),
        str(manifest.directory),
        str(Path(__file__).parent / "_worker"),
        *unmoved(manifest.sandbox.read),
        *extra,
        *(_GPU_FACTS if manifest.sandbox.gpus else ()),
    ]
    # The environment's python is a link into the interpreter's own folder.
    own.append(str((environment / "bin" / "python").resolve().parents[1]))
    return [path for path in (*_SYSTEM, *(f"/etc/{name}" for name in _ETC), *own) if os.path.exists(path)]


def effective_level(manifest: Manifest) -> str:
    """Return the level that this machine provides for a manifest: its own, or the next one below it."""
    level = manifest.sandbox.level
    have = available()
    if level == "bwrap" and have["bwrap"]:
        level = "landlock"
    if level == "landlock" and have["landlock"]:
        level = "limits"
    return level


def worker_config(
    manifest: Manifest, environment: Path | None, extra: list[str], targets: dict[str, Any] | None, nice: int
) -> dict[str, Any]:
    """Return what the worker applies to itself.

    Args:
        manifest: As granted by the policy.
        environment: The environment's folder; None for an extension in the host's process.
        extra: Further folders that it must be able to read.
        targets: The canaries that it tries to reach; None where no attempt is made.
        nice: How far its priority is below the host's.
    """
    wanted = manifest.sandbox
    level = effective_level(manifest)
    devices = ("/tmp", "/dev") if level == "bwrap" else (*_DEVICES, *gpu_nodes(manifest))
    if targets is not None:
        targets = {
            **targets,
            "directory": str(manifest.directory),
            "environment": str((environment or Path()) / "pyvenv.cfg"),
        }
    return {
        "level": level,
        "required": wanted.required,
        "contained": level == "bwrap",
        "namespaces": level == "landlock",
        "limits": manifest.limits.as_numbers(),
        "read": _readable(manifest, environment, extra) if environment is not None else [],
        "granted": [*wanted.read, *wanted.write],
        "write": [*unmoved(wanted.write), *devices],
        "network": wanted.network,
        "gpus": bool(gpu_nodes(manifest)),
        "nice": nice,
        "targets": targets,
    }


def command_prefix(manifest: Manifest, environment: Path, extra: list[str]) -> list[str]:
    """Return the bwrap command that a worker runs under; empty for the other levels."""
    program = shutil.which("bwrap")
    if manifest.sandbox.level != "bwrap" or program is None:
        return []
    command = [program, "--die-with-parent", "--new-session", "--unshare-user-try", "--cap-drop", "ALL"]
    command += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--proc", "/proc", "--dev", "/dev"]
    for path in _KERNEL_SETTINGS:  # root may write to them without any capability
        command += ["--ro-bind-try", path, path]
    # Before what is bound below it: an environment may lie in /tmp.
    if "/tmp" not in manifest.sandbox.write:
        command += ["--tmpfs", "/tmp"]
    if not manifest.sandbox.network:
        command.append("--unshare-net")
    for path in _readable(manifest, environment, extra):
        command += ["--ro-bind", path, path]
    for path in unmoved(manifest.sandbox.write):
        command += ["--bind", path, path]
    for path in gpu_nodes(manifest):
        command += ["--dev-bind-try", path, path]
    return [*command, "--"]


def report(manifest: Manifest, described: dict[str, Any]) -> SandboxReport:
    """Return the report of a worker that is ready.

    Args:
        manifest: As granted by the policy.
        described: The worker's description of itself.
    """
    wanted = manifest.sandbox
    missing = list(described["missing"])
    why = available()[wanted.level]
    if why:
        missing.insert(0, f"level {wanted.level}: {why}; running at level {effective_level(manifest)}")
    granted = [*wanted.read, *wanted.write]
    moved = sorted(set(granted) - set(unmoved(granted)))
    missing += [f"{path}: it leads elsewhere since it was granted, and is not granted" for path in moved]
    if not wanted.network and effective_level(manifest) in ("none", "limits"):
        missing.append(f"no network: level {effective_level(manifest)} cannot turn it off")
    return SandboxReport(wanted.level, tuple(described["enforced"]), tuple(missing), dict(described["tried"]))
