"""Run plugins each in its own virtual environment and process."""

from __future__ import annotations

from typing import Any

from isolate import _moved
from isolate._environments import Environment, EnvironmentStore
from isolate._exports import ProxiedSingleton
from isolate._extension import Extension, LoadReport
from isolate._function import Function, function, run
from isolate._host import Host, Loaded
from isolate._manifest import Manifest, read_manifest
from isolate._policy import Policy, Quotas
from isolate._states import State
from isolate._worker.converters import converter
from isolate._worker.outgoing import share
from isolate.errors import (
    CallTimeoutError,
    ContractMismatchError,
    IsolateError,
    NotReadyError,
    RemoteError,
    WorkerDiedError,
)

__all__ = [
    "CallTimeoutError",
    "ContractMismatchError",
    "Environment",
    "EnvironmentStore",
    "Extension",
    "Function",
    "Host",
    "IsolateError",
    "LoadReport",
    "Loaded",
    "Manifest",
    "NotReadyError",
    "Policy",
    "ProxiedSingleton",
    "Quotas",
    "RemoteError",
    "State",
    "WorkerDiedError",
    "converter",
    "function",
    "read_manifest",
    "run",
    "share",
]

_moved.install()


def __getattr__(name: str) -> Any:
    return _moved.renamed_error("isolate", name)
