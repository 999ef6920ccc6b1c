"""Run plugins each in its own virtual environment and process."""

from isolate.environments import Environment, EnvironmentStore
from isolate.errors import (
    CallTimeout,
    ContractMismatch,
    IsolateError,
    NotReady,
    RemoteError,
    WorkerDied,
)
from isolate.exports import ProxiedSingleton
from isolate.extension import Extension, LoadReport
from isolate.host import Host, Loaded
from isolate.manifest import Manifest, read_manifest
from isolate.requirements import Policy
from isolate.states import State
from isolate.worker.buffers import share

__all__ = [
    "CallTimeout",
    "ContractMismatch",
    "Environment",
    "EnvironmentStore",
    "Extension",
    "Host",
    "IsolateError",
    "LoadReport",
    "Loaded",
    "Manifest",
    "NotReady",
    "Policy",
    "ProxiedSingleton",
    "RemoteError",
    "State",
    "WorkerDied",
    "read_manifest",
    "share",
]
