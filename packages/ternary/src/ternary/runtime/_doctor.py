"""Report which kernel runs packed layers on this machine, and why."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ternary._limits import processors
from ternary.runtime import _gpu as gpu
from ternary.runtime import _native as native

__all__ = ["Report", "doctor"]

_WHY_NOT = {
    "amx": ("x86_64",),
    "avx512vnni": ("x86_64", "AMD64"),
    "avxvnni": ("x86_64", "AMD64"),
    "avx2": ("x86_64", "AMD64"),
    "neon": ("aarch64", "arm64"),
}

_OPTIONAL = {
    "onnx": "extra onnx",
    "onnxscript": "extra onnx",
    "onnxruntime": "extra onnx",
    "gguf": "extra gguf",
    "huggingface-hub": "extra publish",
    "PyGithub": "extra publish",
    "matplotlib": "extra plot",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Kernels that work here, the one that "auto" takes on a CPU, and a reason for each one that does not work.

    Attributes:
        active: Kernel that `kernel="auto"` takes on the CPU.
        available: Every kernel name that works here, fastest first.
        missing: Reason for each known kernel that does not.
        core: Where the compiled core comes from, or why there is none.
        threads: Threads that packed layers use by default.
        machine: Processor architecture.
        torch: Version of torch.
        cuda: Name of the CUDA device, or None.
        triton: Whether Triton is installed.
        compiler: The C compiler that a new installation of this package would find, or None.
        packages: Version of each optional package, None where it is absent.

    Example:
        >>> from ternary.runtime import doctor
        >>> sorted(doctor().as_dict())[:3]
        ['active', 'available', 'compiler']
    """

    active: str
    available: tuple[str, ...]
    missing: dict[str, str]
    core: str
    threads: int
    machine: str
    torch: str
    cuda: str | None
    triton: bool
    compiler: str | None
    packages: dict[str, str | None]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"active kernel   {self.active}",
            f"available       {', '.join(self.available)}",
            *(f"not available   {name}: {why}" for name, why in self.missing.items()),
            f"compiled core   {self.core}",
            f"threads         {self.threads} of {processors()} processors",
            f"machine         {self.machine}, torch {self.torch}",
            f"CUDA            {self.cuda or 'no device'}, Triton {'installed' if self.triton else 'not installed'}",
            f"C compiler      {self.compiler or 'none; install one, then pentad-ternary again, to get the core'}",
            *(f"{name:15} {have or 'not installed (' + _OPTIONAL[name] + ')'}" for name, have in self.packages.items()),
        ]
        return "\n".join(lines)


def doctor() -> Report:
    """Report which kernel is active and why the others are not.

    Example:
        >>> from ternary.runtime import doctor
        >>> report = doctor()
        >>> report.active in report.available
        True
    """
    core = native.core()
    machine = platform.machine()
    missing = {}
    for name, machines in _WHY_NOT.items():
        if name not in core.paths:
            wrong = f"for {machines[0]} processors, this is {machine}"
            lacks = core.reason if core.library is None else "this processor does not have it"
            missing[name] = lacks if machine in machines else wrong
    if core.library is None:
        missing["portable"] = core.reason
    has_triton = gpu.is_available()
    if not has_triton:
        missing["triton"] = "triton is not installed"
    available = native.available_kernels()
    return Report(
        active=available[0],
        available=available,
        missing=missing,
        core=core.reason,
        threads=torch.get_num_threads(),
        machine=machine,
        torch=torch.__version__,
        cuda=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        triton=has_triton,
        compiler=next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None),
        packages={name: _version(name) for name in _OPTIONAL},
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
