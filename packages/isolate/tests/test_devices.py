"""What packs with devices and processes need under confinement: nodes, variables, temporary files, locks, memory."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from devices import cuda_needs
from integration_test_base import IntegrationTestBase

from isolate import Policy, _sandbox
from isolate._policy import read_policy
from isolate._worker.confine import landlock_version

CODE = """
import multiprocessing, os, tempfile
from multiprocessing import shared_memory

def variables(names):
    return {name: os.environ.get(name) for name in names}

def temporary():
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(b"secret")
        return file.name

def lock():
    with multiprocessing.Lock():
        return True

def processes():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return pool.map(abs, [-1, 2])

def shared():
    block = shared_memory.SharedMemory(create=True, size=100)
    block.close()
    block.unlink()
    return True

def cache():
    place = os.path.expanduser("~/cache")
    os.mkdir(place)
    return place

def opens(path):
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as failure:
        return type(failure).__name__
    return "open"
"""
LEVELS = [level for level in ("landlock", "bwrap") if not _sandbox.available()[level]]
STAND_IN = Path("/dev/fuse")
"""A device that every user may open: no GPU is needed to see that a node is granted."""


class TestVariables(IntegrationTestBase):
    """What a policy sets."""

    def test_each_extension_has_its_own(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A host, or a policy file, gives each extension a GPU of its own; the last pattern that matches decides."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        names = ["CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HOME"]
        file = tmp_path / "policy.toml"
        file.write_text(
            '[variables."up*"]\nCUDA_VISIBLE_DEVICES = "1"\nOMP_NUM_THREADS = "2"\n'
            '[variables.upscale]\nCUDA_VISIBLE_DEVICES = ""\n'
        )
        policy = read_policy(file)
        assert hash(policy) == hash(Policy())
        host = self.make_host(policy=policy, spares=1)
        found = [
            host.load(self.create_extension(name, CODE)).call.variables(names) for name in ("upload", "upscale", "x")
        ]
        assert [list(variables.values()) for variables in found] == [
            ["1", "2", None],
            ["", "2", None],
            ["0,1,2", None, None],
        ]


@pytest.mark.parametrize("level", LEVELS)
class TestDevices(IntegrationTestBase):
    """One confined extension."""

    def test_processes_and_files_of_its_own(self, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Locks, pools, shared memory and temporary files work, in places that nobody else sees."""
        for name, value in (("CUDA_VISIBLE_DEVICES", "1"), ("OMP_NUM_THREADS", "3"), ("A_SECRET", "x")):
            monkeypatch.setenv(name, value)
        pack = self.make_host().load(self.create_extension("pack", CODE, sandbox={"level": level}))
        wanted = {"CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "3", "A_SECRET": None}
        assert pack.call.variables(list(wanted)) == wanted
        assert not os.path.exists(pack.call.temporary())
        assert pack.call.lock()
        assert pack.call.processes() == [1, 2]
        assert pack.call.shared()
        assert os.path.dirname(pack.call.cache()) in ("/tmp", "/dev/shm")
        assert pack.report is not None
        assert pack.report.sandbox.missing == ()

    @pytest.mark.skipif(not os.access(STAND_IN, os.W_OK), reason="no device that every user may open")
    def test_nodes(self, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """GPUs' nodes are there only where the manifest lists GPUs and the policy allows them; others never are."""
        monkeypatch.setattr(_sandbox, "_GPU_NODES", ("fus[e]",))
        wish = {"level": level, "gpus": True}
        without = self.make_host().load(self.create_extension("without", CODE, sandbox=wish))
        assert without.call.opens(str(STAND_IN)) != "open"
        assert without.report is not None
        assert without.report.refused == ("sandbox.gpus: the host must allow it: allow_gpus=True",)
        host = self.make_host(policy=Policy(allow_gpus=True))
        granted = host.load(self.create_extension("granted", CODE, sandbox=wish))
        assert granted.call.opens(str(STAND_IN)) == "open"
        assert granted.call.opens("/dev/net/tun") != "open"
        assert granted.call.opens("/proc/thread-self/comm") == "open"  # in which CUDA names its threads
        for setting in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/comm"):
            assert granted.call.opens(setting) != "open"
        assert granted.report is not None
        assert (granted.report.refused, granted.report.sandbox.missing) == ((), ())
        unasked = host.load(self.create_extension("unasked", CODE, sandbox={"level": level}))
        assert unasked.call.opens(str(STAND_IN)) != "open"


NEEDS = Path(cuda_needs.__file__).read_text()
REFUSED = {"name a thread of a child process"}
"""What is refused to an extension with GPUs too: see `docs/security.md`."""


@pytest.fixture
def packets(tmp_path: Path) -> Iterator[str]:
    """The name of two Unix sockets for packets: a path, and the same as an abstract name."""
    name = str(tmp_path / secrets.token_hex(4))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as by_path,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as abstract,
    ):
        for made, address in ((by_path, name), (abstract, "\0" + name)):
            made.bind(address)
            made.listen(1)
        yield name


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("level", LEVELS)
class TestCuda(IntegrationTestBase):
    """What CUDA's library asks of the system while it starts. A node that every machine has stands for a GPU's."""

    def test_all_that_it_asks_for(
        self, level: str, network: bool, packets: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """An extension with GPUs gets what the machine has of it, and no more of Unix sockets than that."""
        monkeypatch.setattr(_sandbox, "_GPU_NODES", ("null",))
        wish = {"level": level, "gpus": True, "network": network}
        pack = self.make_host(policy=Policy(allow_gpus=True)).load(self.create_extension("pack", NEEDS, sandbox=wish))
        here, there = cuda_needs.tried(), pack.call.tried()
        assert [name for name, failure in there.items() if failure and not here[name]] == sorted(REFUSED)

        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            assert pack.call.unix(int(kind), packets) == "socket: EACCES"
            assert pack.call.unix(int(kind), "\0" + packets) == "socket: EACCES"
        assert pack.call.unix(int(socket.SOCK_SEQPACKET), "\0" + packets) in ("connect: EACCES", "connect: EPERM")
        own = "/tmp/own" if level == "bwrap" else "/dev/shm/own"
        assert pack.call.listens(own) == "bind: EACCES"
        assert pack.call.listens(f"\0{packets}-own") == ("accept: EAGAIN" if network else "accept: EACCES")
        by_path = pack.call.unix(int(socket.SOCK_SEQPACKET), packets)
        open_path = level == "landlock" and network and landlock_version() < 9
        if level == "bwrap" and network:
            assert by_path == "connect: ENOENT"
        else:
            assert by_path == ("" if open_path else "connect: EACCES")

        assert pack.report is not None
        assert pack.report.sandbox.missing == ()
        tried = pack.report.sandbox.tried
        assert tried["Unix packet socket by path"] == open_path
        assert not tried["Unix socket by path"]
        assert not tried["Unix socket by abstract name"]

    def test_names_of_other_processes(
        self, level: str, network: bool, packets: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With no network, a name that another process has is free: nobody outside can be kept from taking one."""
        monkeypatch.setattr(_sandbox, "_GPU_NODES", ("null",))
        wish = {"level": level, "gpus": True, "network": network}
        pack = self.make_host(policy=Policy(allow_gpus=True)).load(self.create_extension("pack", NEEDS, sandbox=wish))
        assert pack.call.listens("\0" + packets) == ("bind: EADDRINUSE" if network else "accept: EACCES")

    def test_nothing_without_gpus(
        self, level: str, network: bool, packets: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither where the manifest lists no GPUs, nor where the policy or the machine has none."""
        asks = {"level": level, "network": network}
        wishes = {
            "unasked": (("null",), asks, Policy(allow_gpus=True)),
            "refused": (("null",), asks | {"gpus": True}, Policy()),
            "absent": ((), asks | {"gpus": True}, Policy(allow_gpus=True)),
        }
        for name, (nodes, wish, policy) in wishes.items():
            monkeypatch.setattr(_sandbox, "_GPU_NODES", nodes)
            pack = self.make_host(policy=policy).load(self.create_extension(name, NEEDS, sandbox=wish))
            there = pack.call.tried()
            assert there["listen at an abstract name"].startswith("EACCES")
            assert there["name a thread"].startswith(("EACCES", "EROFS"))
            for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM, socket.SOCK_DGRAM):
                assert pack.call.unix(int(kind), packets) == "socket: EACCES"
            assert pack.report is not None
            assert pack.report.sandbox.missing == ()


@pytest.mark.slow
@pytest.mark.skipif(not LEVELS, reason="no confinement on this machine")
def test_the_program_for_a_gpu() -> None:
    """It runs to its end where there is no GPU, and names what of CUDA's needs an extension with GPUs lacks."""
    program = Path(cuda_needs.__file__).with_name("which_step.py")
    done = subprocess.run([sys.executable, program, "--rehearse"], capture_output=True, text=True, check=True)
    refused = [line.split(": ")[1] for line in done.stdout.splitlines() if line.startswith("    refused: ")]
    assert refused == sorted(REFUSED) * 2 * len(LEVELS)
    assert "missing" not in done.stdout
