"""One copy of the weights per GPU: on the emulated driver in `driver/`, whose rules none may break, or on a GPU."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import zerocopy
from zerocopy._doctor import examine
from zerocopy.errors import (
    CorruptSegmentError,
    DeviceUnavailableError,
    NoSpaceError,
    UntrustedPathError,
    WriteRefusedError,
)

# cuda: zerocopy._device.* by emulator
# cuda: zerocopy._ref:* by emulator
# cuda: zerocopy._device.loading:current_stream by GPU
# cuda: zerocopy._torch_private:streams_of by GPU
# cuda: zerocopy._flatten:Block.bytes_view by GPU

pytestmark = pytest.mark.timeout(300)
HERE = Path(__file__).parent / "driver"


class Net(nn.Module):
    """Layers with a tie, a buffer, a view of a weight and a tensor without elements."""

    def __init__(self, width: int = 700) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.inputs = width
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(0.5))
        self.register_buffer("part", self.first.weight.detach()[2:4, ::3])
        self.register_buffer("none", torch.empty(0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a few numbers."""
        return (self.second(self.first(x)) * self.scale)[:, :3] + self.part.sum()


class Layouts(nn.Module):
    """Weights whose bytes lie in other orders, in part of a storage, or several times in a tensor."""

    inputs = 512

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.dense = nn.Linear(512, 512)
        self.turned = nn.Parameter(torch.randn(512, 300).t())
        self.image = nn.Parameter(torch.randn(64, 32, 8, 8).to(memory_format=torch.channels_last))
        self.register_buffer("brain", torch.randn(512, 512).bfloat16())
        self.register_buffer("every_second", torch.randn(1000, 1000)[::2, ::2])
        self.register_buffer("repeated", torch.randn(1, 4000).expand(500, 4000))
        self.register_buffer("part", torch.randn(700, 700)[100:500])
        self.register_buffer("negative", torch.randn(300, 400, dtype=torch.complex64).conj().imag)
        self.register_buffer("conjugate", torch.randn(300, 400, dtype=torch.complex64).conj())
        self.register_buffer("odd", torch.randint(0, 255, (1234567,), dtype=torch.uint8))
        self.register_buffer("large", torch.randn(3 << 20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a few numbers."""
        return self.dense(x)[:, :3]


SAME = (
    "all(torch.equal(here.resolve_conj().resolve_neg().cpu(), there.resolve_conj().resolve_neg())"
    " and here.shape == there.shape"
    " for here, there in zip(model.state_dict().values(), wanted.state_dict().values()))"
)


def eventually(condition: Callable[[], bool], seconds: float = 120) -> bool:
    """Wait until a condition holds; whether it did."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Worker:
    """A process that loads onto a device."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.pid = connection.recv()

    def send(self, function: str, *args: Any, **kwargs: Any) -> None:
        """Ask for a call and do not wait."""
        self._connection.send((function, args, kwargs))

    def result(self) -> Any:
        """Return or raise what the call asked for has returned or raised."""
        well, result = self._connection.recv()
        if not well:
            raise result
        return result

    def __call__(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Ask for a call and return its result."""
        self.send(function, *args, **kwargs)
        return self.result()

    def end(self) -> None:
        """Let it end and wait for that."""
        self._connection.close()
        assert eventually(lambda: not psutil.pid_exists(self.pid))

    def kill(self) -> None:
        """Kill it and wait for its end."""
        os.kill(self.pid, signal.SIGKILL)
        self.end()


class Workers:
    """Workers, and what the emulated driver says about them."""

    def __init__(self, path: str, folder: Path, emulated: bool) -> None:
        self._path, self._started = path, []
        self.folder, self.emulated = folder, emulated

    def start(self, **variables: str) -> Worker:
        """Start a worker with variables of its environment."""
        worker = Worker(Client(self._path, "AF_UNIX"))
        self._started.append(worker)
        if variables:
            worker("environ", **variables)
        return worker

    def end(self) -> None:
        """End those that are left."""
        for worker in self._started:
            if psutil.pid_exists(worker.pid):
                worker.end()

    def violations(self) -> str:
        """Return what broke the driver's rules."""
        file = self.folder / "violations"
        return file.read_text() if file.exists() else ""

    def allocations(self) -> int:
        """Return how many pieces of these workers' device memory exist in the system, as far as one may look."""
        name, found = f"emulated-device-memory of {self.folder.name} ", set()
        for process in psutil.process_iter():
            try:
                files = Path(f"/proc/{process.pid}/map_files"), Path(f"/proc/{process.pid}/fd")
                for file in [*files[0].iterdir(), *files[1].iterdir()]:
                    try:
                        if name in os.readlink(file):
                            found.add(file.stat().st_ino)
                    except OSError:
                        continue
            except OSError:
                continue
        return len(found)


def keepers() -> list[psutil.Process]:
    """Return the keepers of these tests' folder."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            folders = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
        except (OSError, psutil.Error):
            continue
        if any(part.endswith("keeper_process.py") for part in command) and str(devices()) in folders:
            found.append(process)
    return found


def devices() -> Path:
    """Return the folder of the sockets."""
    return Path(os.environ["ZEROCOPY_DIRECTORY"]) / "devices"


@pytest.fixture(scope="module", params=["emulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def parent(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path, bool]]:
    """The process that workers are forked from."""
    emulated = request.param == "emulated"
    if not emulated and not torch.cuda.is_available():
        if os.environ.get("REQUIRE_CUDA") == "1":
            pytest.fail("REQUIRE_CUDA=1, and torch sees no CUDA device")
        pytest.skip("no CUDA device")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if emulated and (compiler is None or sys.platform != "linux"):
        pytest.skip("needs a C compiler and Linux")
    folder = Path(tempfile.mkdtemp(prefix="zerocopy-driver-"))
    env = dict(os.environ)
    if emulated:
        library = folder / "libcuda.so.1"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "libcuda.c"], check=True)
        env |= {"LD_LIBRARY_PATH": str(folder), "EMULATED_DRIVER": str(folder)}
    path = str(folder / "socket")
    command = [sys.executable, str(HERE / "worker.py"), path, *["emulated"] * emulated]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield path, folder, emulated
        process.kill()
    shutil.rmtree(folder)


@pytest.fixture
def workers(parent: tuple[str, Path, bool], by_value: None) -> Iterator[Workers]:
    """Workers that end with the test, and leave nothing."""
    made = Workers(*parent)
    yield made
    made.end()
    assert made.violations() == ""
    assert eventually(lambda: not keepers())
    assert eventually(lambda: not devices().exists() or not list(devices().iterdir()))
    if made.emulated:
        assert eventually(lambda: made.allocations() == 0)


def test_one_copy_for_all_that_start_together(workers: Workers, publish: Callable[..., zerocopy.ModelRef]) -> None:
    """One process copies, all answer as the published model does, and the copy goes with the last of them."""
    model = Net().eval()
    ref = publish(model).to_json()
    team = [workers.start() for _ in range(4)]
    for worker in team:
        worker("slow", 0.05)
        worker.send("load", ref)
    for worker in team:
        loaded = worker.result()
        assert not loaded["own"]
        assert loaded["protected"] in ([True], [False])
    wanted = model(torch.ones(2, model.inputs)).flatten().tolist()
    for worker in team:
        assert worker("answer") == pytest.approx(wanted, rel=1e-4)
        assert worker("look", "model.second.weight is model.first.weight")
        assert worker("look", "model.part.data_ptr() - model.first.weight.data_ptr()") == 2 * 700 * 4
        assert worker("look", "(model.none.shape, model.part.stride())") == (torch.Size([0, 3]), (700, 3))
        assert worker("load", ref, "other", cached=False) == loaded
    if workers.emulated:
        assert eventually(lambda: workers.allocations() == 1)
    assert eventually(lambda: len(keepers()) == 1)


def test_a_model_lives_on_the_device_after_its_publisher(workers: Workers) -> None:
    """The weights on the device need neither the publisher nor the segment."""
    model = Net(64).eval()
    ref = zerocopy.publish(model)
    worker = workers.start()
    worker("load", ref.to_json())
    zerocopy.unpublish(ref)
    assert eventually(lambda: not Path(ref.path).exists())
    assert worker("answer") == pytest.approx(model(torch.ones(2, 64)).flatten().tolist(), rel=1e-4)


def test_any_process_may_be_killed(workers: Workers, publish: Callable[..., zerocopy.ModelRef]) -> None:
    """The copy outlives the process that made it, and readers outlive the keeper; the next one starts another copy."""
    model = Net(64).eval()
    ref, wanted = publish(model).to_json(), model(torch.ones(2, 64)).flatten().tolist()
    first, second = workers.start(), workers.start()
    first("load", ref)
    second("load", ref)
    first.kill()
    third = workers.start()
    third("load", ref)
    assert third("answer") == pytest.approx(wanted, rel=1e-4)
    assert eventually(lambda: len(keepers()) == 1)
    keepers()[0].kill()
    fourth = workers.start()
    fourth("load", ref)
    for worker in second, third, fourth:
        assert worker("answer") == pytest.approx(wanted, rel=1e-4)
    if workers.emulated:
        assert eventually(lambda: workers.allocations() == 2)
        second.end()
        third("drop")
        assert eventually(lambda: workers.allocations() == 1)  # nobody keeps the first copy any more


def test_a_leader_that_is_killed_while_it_copies(
    workers: Workers, publish: Callable[..., zerocopy.ModelRef], tmp_path: Path
) -> None:
    """Another process takes its place."""
    ref = publish(Net(64).eval()).to_json()
    leader, other = workers.start(), workers.start()
    leader("slow", 60, str(tmp_path / "begun"))
    leader.send("load", ref)
    assert eventually((tmp_path / "begun").exists)
    other.send("load", ref)
    leader.kill()
    assert not other.result()["own"]
    assert eventually(lambda: len(keepers()) == 1)
    if workers.emulated:
        assert eventually(lambda: workers.allocations() == 1)


def test_a_write_reaches_no_other_process(workers: Workers, publish: Callable[..., zerocopy.ModelRef]) -> None:
    """It ends the use of CUDA in the process that made it, where the driver protects memory."""
    model = Net(64).eval()
    ref = publish(model).to_json()
    reader, writer = workers.start(), workers.start()
    protected = reader("load", ref)["protected"]
    writer("load", ref)
    with pytest.raises(WriteRefusedError, match="would write to the published weight"):
        writer("write", strict=True)
    if workers.emulated:
        assert protected == [True]
    if protected != [True]:
        pytest.skip("this driver protects no memory")
    writer.send("write")
    with pytest.raises((EOFError, ConnectionError, RuntimeError)):
        writer.result()
    assert reader("answer") == pytest.approx(model(torch.ones(2, 64)).flatten().tolist(), rel=1e-4)


def test_a_driver_that_protects_nothing(workers: Workers, publish: Callable[..., zerocopy.ModelRef]) -> None:
    """Loading works, and says that the memory is not protected."""
    worker = workers.start()
    worker("refuse", "allow", 801, write=False)
    assert worker("load", publish(Net(64).eval()).to_json())["protected"] == [False]


@pytest.mark.parametrize("share", [True, False])
def test_memory_that_cannot_be_pinned(share: bool, workers: Workers, publish: Callable[..., zerocopy.ModelRef]) -> None:
    """The weights are copied all the same."""
    model = Layouts().eval()
    worker = workers.start()
    worker("refuse", "pin", 2)
    worker("load", publish(model).to_json(), share=share)
    assert worker("answer") == pytest.approx(model(torch.ones(2, model.inputs)).flatten().tolist(), rel=1e-4)


@pytest.mark.parametrize("share", [True, False])
def test_more_pieces_than_are_pinned_at_once(
    share: bool, workers: Workers, publish: Callable[..., zerocopy.ModelRef]
) -> None:
    """Each is unpinned when its copies are done, and every weight arrives."""
    ref, worker = publish(Layouts().eval()).to_json(), workers.start()
    worker("small_pieces")
    worker("load", ref, share=share)
    worker("load", ref, "wanted", device="cpu")
    assert worker("look", SAME)


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (("answer_with", "can_share", False), DeviceUnavailableError, "cannot share memory"),
        (("refuse", "create", 2), NoSpaceError, "no room on cuda:0"),
        (("refuse", "map", 801), DeviceUnavailableError, "cannot take the weights"),
        (("refuse", "to_device", 1), DeviceUnavailableError, "cannot take the weights"),
        (("refuse", "export", 801), DeviceUnavailableError, "cannot take the weights"),
        (("damage",), CorruptSegmentError, "does not match its digest"),
        (("environ",), DeviceUnavailableError, "does not start|no CUDA device"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_the_device_refuses(
    fault: tuple[Any, ...],
    error: type[Exception],
    text: str,
    workers: Workers,
    publish: Callable[..., zerocopy.ModelRef],
) -> None:
    """Each has a typed error that says what to do, and the next process is not disturbed."""
    ref = publish(Net(64).eval()).to_json()
    lacking = {"EMULATED_WITHOUT": "device", "CUDA_VISIBLE_DEVICES": ""} if fault == ("environ",) else {}
    worker = workers.start()
    worker(*fault, **lacking)
    with pytest.raises(error, match=text):
        worker("load", ref)
    assert eventually(lambda: not keepers())
    if workers.emulated:
        assert eventually(lambda: workers.allocations() == 0)
    assert not workers.start()("load", ref)["own"]


def test_a_forked_process_is_refused(workers: Workers, publish: Callable[..., zerocopy.ModelRef]) -> None:
    """It gets a typed error although its parent has the model, and does not keep the parent's memory."""
    ref = publish(Net(64).eval()).to_json()
    worker = workers.start()
    worker("load", ref)
    assert set(worker("in_fork", ref)) == {"DeviceUnavailableError"}
    worker("drop")
    assert eventually(lambda: not keepers())


def test_memory_is_unmapped_after_the_work_that_uses_it(
    workers: Workers, publish: Callable[..., zerocopy.ModelRef]
) -> None:
    """A model that is released while kernels that read it are queued, or while a graph is captured."""
    model = Net(64).eval()
    ref = publish(model).to_json()
    worker = workers.start()
    worker("load", ref)
    result = worker("drop_in_use")
    assert result is None or result == pytest.approx(model.first.weight.sum().item(), rel=1e-3)
    assert eventually(lambda: not keepers())
    worker("load", ref)
    assert worker("drop_in_capture") == (True, 2)  # to wait for the device would break the graph
    assert eventually(lambda: not keepers())


def test_two_devices(workers: Workers, publish: Callable[..., zerocopy.ModelRef]) -> None:
    """Each has a copy of its own, under whatever number a process sees it."""
    if not workers.emulated:
        pytest.skip("needs two devices")
    ref = publish(Net(64).eval()).to_json()
    both, one = workers.start(), workers.start(CUDA_VISIBLE_DEVICES="1")
    both("load", ref, "zero", device="cuda:0")
    both("load", ref, "one", device="cuda:1")
    assert eventually(lambda: workers.allocations() == 2)
    one("load", ref)
    assert eventually(lambda: workers.allocations() == 2)
    with pytest.raises(DeviceUnavailableError, match="cuDeviceGet"):
        both("load", ref, "two", device="cuda:2")


def test_a_report_lists_the_copy(workers: Workers, publish: Callable[..., zerocopy.ModelRef]) -> None:
    """Device, bytes and processes, also after the publisher has left; `written` lists what a model shares no more."""
    ref = publish(Net().eval(), name="reported")
    first, second = workers.start(), workers.start()
    for worker in first, second:
        worker("load", ref.to_json())
    assert eventually(lambda: len(keepers()) == 1)
    reports: list[zerocopy.Report] = []

    def listed() -> bool:  # a report does not wait long for a keeper
        reports.append(zerocopy.report())
        return len(reports[-1].devices) == 1

    assert eventually(listed)
    report = reports[-1]
    (copy,) = report.devices
    assert copy.model == f"reported {ref.version}"
    assert copy.nbytes >= ref.nbytes
    assert set(copy.holders) == {first.pid, second.pid}
    assert str(copy) in str(report)
    assert report.as_dict()["devices"][0]["device"] == copy.device
    assert eventually(
        lambda: any("1 copies of weights" in str(found) for found in examine() if found.subject == "shared on GPUs")
    )
    if not workers.emulated:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
        assert copy.device in listed
    assert first("look", "zerocopy.written(model)") == ()
    first("look", "model.first.half() and None")
    names = {entry.name for entry in first("look", "zerocopy.written(model)") if entry.replaced}
    assert names == {"first.weight", "second.weight", "first.bias"}  # two are one
    first("look", "model.half() and None")
    assert "second.bias" in {entry.name for entry in first("look", "zerocopy.written(model)")}
    first.end()
    assert eventually(lambda: [copy.holders for copy in zerocopy.report().devices] == [(second.pid,)])


class Rewriter(nn.Module):
    """Changes a weight while it is rebuilt."""

    inputs = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.layer.bias.data.fill_(3)


def test_weights_of_fine_tunes_and_of_models_that_change_them(
    workers: Workers, publish: Callable[..., zerocopy.ModelRef]
) -> None:
    """A fine-tune shares its base's copy. A weight that differs from the segment is not shared."""
    base = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    base.inputs = 64
    ref = publish(base, name="base")
    tuned = ref.load(cached=False)
    tuned[1] = nn.Linear(64, 3)
    delta, worker = publish(tuned, name="tuned", base=ref), workers.start()
    assert not worker("load", ref.to_json(), "base")["own"]
    assert not worker("load", delta.to_json(), "tuned")["own"]
    assert eventually(lambda: len(keepers()) == 2)
    assert worker("look", "base[0].weight.data_ptr() - tuned[0].weight.data_ptr() != 0")  # two mappings
    assert worker("answer", "tuned") == pytest.approx(tuned(torch.ones(2, 64)).flatten().tolist(), rel=1e-4)
    loaded = worker("load", publish(Rewriter().eval()).to_json(), "changed")
    assert loaded["own"]
    assert worker("look", "changed.layer.bias.tolist()") == [3, 3, 3, 3]


def test_the_folder_of_the_sockets_is_checked(workers: Workers, publish: Callable[..., zerocopy.ModelRef]) -> None:
    """Nothing is asked in a folder that others can write, and another user's socket is refused."""
    ref = publish(Net(64).eval()).to_json()
    devices().mkdir(exist_ok=True)
    devices().chmod(0o777)
    try:
        with pytest.raises(UntrustedPathError, match="can be written by other users"):
            workers.start()("load", ref)
    finally:
        devices().chmod(0o700)


PLANT = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
os.setuid(12345)
listener.listen()
print("ready", flush=True)
sys.stdin.read()
"""

ASK = """
import os, socket, sys
os.setuid(12345)
asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
asking.connect(sys.argv[1])
asking.settimeout(200)
print(socket.recv_fds(asking, 100, 1)[:2])
"""


def test_a_load_without_sharing(workers: Workers, publish: Callable[..., zerocopy.ModelRef]) -> None:
    """Every weight arrives, whatever its layout, and each process may write its own."""
    for model in (Net().eval(), Layouts().eval()):
        ref = publish(model).to_json()
        worker, other = workers.start(), workers.start()
        worker("load", ref, share=False)
        other("load", ref, share=False)
        worker("load", ref, "wanted", device="cpu")
        assert worker("look", SAME)
        wanted = model(torch.ones(2, model.inputs)).flatten().tolist()
        assert worker("answer") == pytest.approx(wanted, rel=1e-4)
        other("write")
        assert worker("answer") == pytest.approx(wanted, rel=1e-4)
        assert worker("look", "model.dense.weight.stride() if hasattr(model, 'dense') else model.part.stride()")
    assert worker("look", "model.turned.stride() == wanted.turned.stride()")
    assert worker("look", "model.image.stride() == wanted.image.stride()")


def test_a_load_returns_when_the_weights_are_there(workers: Workers, publish: Callable[..., zerocopy.ModelRef]) -> None:
    """Work on any stream may read them then."""
    worker = workers.start()
    assert worker("load_and_leave", publish(Net(1400).eval()).to_json()) == 0


@pytest.mark.parametrize("fault", [("refuse", "to_device", 1), ("refuse", "record", 1), ("refuse", "finish", 1)])
def test_a_copy_that_fails_half_way(
    fault: tuple[Any, ...], workers: Workers, publish: Callable[..., zerocopy.ModelRef]
) -> None:
    """A load without sharing raises a typed error, and the next one works."""
    ref = publish(Layouts().eval()).to_json()
    worker = workers.start()
    worker(*fault)
    with pytest.raises(DeviceUnavailableError, match="refused"):
        worker("load", ref, share=False)
    assert workers.start()("load", ref, share=False)["own"]


@pytest.mark.skipif(sys.platform != "linux", reason="keepers listen on Linux")
@pytest.mark.parametrize("says", [None, b"nonsense", b'{"device": "?", "nbytes": 1, "model": "m"}', b"[]"])
def test_a_report_says_which_keeper_did_not_answer(says: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is stopped or says something else stands in the report and in `doctor`; one that ended does not."""
    monkeypatch.setattr("zerocopy._device.keeper._GLANCE", 0.2 if says is None else 60)
    devices().mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(devices(), os.O_RDONLY)
    asked = []

    def answer(listener: socket.socket) -> None:
        for _ in range(2):  # the report and `doctor`
            connection, _ = listener.accept()
            with connection:
                asked.append(socket.send_fds(connection, [says or b""], [folder]))

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as ended:
            ended.bind(f"/proc/self/fd/{folder}/ended")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(f"/proc/self/fd/{folder}/busy")
            listener.listen(8)
            thread = threading.Thread(target=answer, args=(listener,), daemon=True)
            if says is not None:
                thread.start()
            report, (finding,) = zerocopy.report(), [it for it in examine() if it.subject == "shared on GPUs"]
            if says is not None:
                thread.join()
    finally:
        os.close(folder)
        for name in ("ended", "busy"):
            (devices() / name).unlink()
    assert report.devices == ()
    (entry,) = [each for each in report.unreadable if each.file.startswith("devices/")]
    assert entry.file == "devices/busy"
    assert ("does not answer within 0.2 s" if says is None else "says something else") in entry.reason
    assert f"not read: devices/busy: {entry.reason}" in str(report)
    assert not finding.ok
    assert entry.reason in str(finding)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")
def test_other_users_get_nothing(workers: Workers, publish: Callable[..., zerocopy.ModelRef]) -> None:
    """A socket of another user is refused, and a keeper hands another user nothing, even where folders let both in."""
    ref = publish(Net(64).eval()).to_json()
    worker = workers.start()
    worker("load", ref)
    assert eventually(lambda: len(keepers()) == 1)
    path = next(file for file in devices().iterdir() if not file.name.endswith(".part"))
    opened = [path, *path.parents][: len(path.relative_to(devices().parent).parts) + 1]
    modes = [(part, part.stat().st_mode & 0o777) for part in opened]
    try:
        for part in opened:
            part.chmod(0o777)
        asked = subprocess.run([sys.executable, "-c", ASK, path], capture_output=True, text=True, check=True)
        assert asked.stdout == "(b'', [])\n"
    finally:
        for part, mode in modes:
            part.chmod(mode)
    worker("drop")
    assert eventually(lambda: not path.exists())
    with subprocess.Popen(
        [sys.executable, "-c", PLANT, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as planted:
        assert planted.stdout is not None
        assert planted.stdout.readline() == b"ready\n"
        with pytest.raises(UntrustedPathError, match="user 12345 listens at"):
            worker("load", ref)
        planted.communicate()
    path.unlink()


def test_what_cannot_be_shared(publish: Callable[..., zerocopy.ModelRef]) -> None:
    """Devices without sharing, a machine without CUDA, and objects that have no `to`."""
    ref = publish(nn.Linear(2, 2))
    assert ref.load(share=True) is ref.load()
    with pytest.raises(ValueError, match="for CUDA devices"):
        ref.load(device="meta", share=True)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceUnavailableError, match="no CUDA device"):
            ref.load(device="cuda", share=True)
    with pytest.raises(TypeError, match="no method `to`"):
        publish({"weight": torch.ones(2)}).load(device="meta")
