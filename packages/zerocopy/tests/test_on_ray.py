"""Ray Data, Ray Serve, and a second raylet: where a model's weights travel, they travel once."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from zerocopy import ModelRef
from zerocopy.errors import CorruptSegmentError, SegmentGoneError

Publish = Callable[..., ModelRef]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
def test_map_batches(ray: Any, simple_model: nn.Module, publish: Publish) -> None:
    """Ray Data's map_batches with a BatchPredictor returns the model's answers, row by row."""
    ray_data = pytest.importorskip("ray.data")
    from zerocopy.on_ray import BatchPredictor

    rows = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    done = ray_data.from_numpy(rows).map_batches(
        BatchPredictor, fn_constructor_args=(publish(simple_model),), batch_size=16, concurrency=2, num_cpus=0.5
    )
    taken = done.take_all()
    with torch.no_grad():
        expected = {row.tobytes(): simple_model(torch.from_numpy(row[None])).numpy()[0] for row in rows}
    assert len(taken) == 64
    for row in taken:
        data = np.asarray(row["data"], dtype=np.float32)
        assert np.allclose(row["prediction"], expected[data.tobytes()], atol=1e-6)


def test_batch_predictor_in_this_process(simple_model: nn.Module, publish: Publish) -> None:
    """The callable class adds its column and takes read-only batches."""
    pytest.importorskip("ray")
    from zerocopy import forget
    from zerocopy.on_ray import BatchPredictor

    batch = {"data": np.ones((3, 8), dtype=np.float32), "id": np.arange(3)}
    batch["data"].setflags(write=False)
    result = BatchPredictor(publish(simple_model))(batch)
    assert np.array_equal(result["prediction"], simple_model(torch.ones(3, 8)).detach().numpy())
    assert np.array_equal(result["id"], batch["id"])
    forget()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_serve(fresh_script: Any) -> None:
    """Two Serve replicas answer with one copy of the weights, and switch to a new version by user_config."""
    pytest.importorskip("ray.serve")
    code = """
import os, logging, warnings
os.environ["RAY_AUTH_MODE"] = "disabled"
import torch, ray, zerocopy
from ray import serve
from zerocopy.on_ray import deployment
ray.init(address="local", num_cpus=4, object_store_memory=80 << 20, include_dashboard=False,
logging_level=logging.ERROR)
model = torch.nn.Linear(4, 4)
ref = zerocopy.publish(model)
app = deployment(ref, num_replicas=2, ray_actor_options={"num_cpus": 0.1})
import contextlib, secrets, socket
port = 0
while not port:  # between those that Ray's workers take and those that systems choose
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", chosen := 20000 + secrets.randbelow(12000)))
        port = chosen
serve.start(http_options={"port": port})
handle = serve.run(app, name="net", route_prefix=None)
inputs = torch.randn(2, 4)
with torch.no_grad():
    right = all(torch.equal(handle.remote(inputs).result(timeout_s=100), model(inputs)) for _ in range(6))
readers = sum(entry.readers for entry in zerocopy.report().segments if ref.path.endswith(entry.file))
print("RESULT", right, readers)
import json, urllib.error, urllib.request
serve.run(deployment(ref, num_replicas=2, ray_actor_options={"num_cpus": 0.1}), name="web", route_prefix="/")
def post(body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
def close(body, wanted):
    status, answer = post(body)
    return status == 200 and torch.allclose(torch.tensor(answer), wanted, atol=1e-6)
rows = inputs.tolist()
forms = [rows, {"args": [rows]}, {"input": rows}, {"kwargs": {"input": rows}}]
print("HTTP", all(close(form, model(inputs)) for form in forms for _ in range(3)))
print("BAD", [post(body)[0] for body in ([[1.0]], [[1.0], [1.0, 2.0]], {"nonsense": 1}, "text")])
with torch.no_grad():
    model.bias.add_(1)
second = zerocopy.publish(model)
serve.run(deployment(ref, num_replicas=2, ray_actor_options={"num_cpus": 0.1}, user_config={"ref": second.as_dict()}),
          name="web", route_prefix="/")
print("RELOADED", all(close(rows, model(inputs)) for _ in range(8)))
serve.shutdown()
ray.shutdown()
"""
    printed = fresh_script(code).stdout
    for line in ("RESULT True 2", "HTTP True", "BAD [400, 400, 400, 400]", "RELOADED True"):
        assert line in printed, printed


@pytest.mark.filterwarnings("ignore")
def test_batch_predictor_with_other_models(publish: Publish) -> None:
    """A Hugging Face classifier, a bfloat16 model, a dataclass and a tuple; one column or several by name."""
    pytest.importorskip("ray")
    transformers = pytest.importorskip("transformers")
    from zerocopy import forget
    from zerocopy.on_ray import BatchPredictor

    config = transformers.BertConfig(
        vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    classifier = transformers.BertForSequenceClassification(config).eval()
    batch = {"input_ids": np.arange(12).reshape(3, 4), "attention_mask": np.ones((3, 4), dtype=np.int64)}
    with torch.no_grad():
        wanted = classifier(**{name: torch.from_numpy(column) for name, column in batch.items()}).logits.numpy()
    columns = ["input_ids", "attention_mask"]
    result = BatchPredictor(publish(classifier, name="bert"), columns)(batch)
    assert np.array_equal(result["prediction"], wanted)
    assert set(result) == {*columns, "prediction"}
    narrow = BatchPredictor(publish(classifier.to(torch.bfloat16), name="bf16"), "input_ids")
    assert narrow(batch)["prediction"].dtype == np.float32
    halved = nn.Linear(4, 2).to(torch.bfloat16)
    data = {"data": np.ones((3, 4), dtype=np.float64)}
    assert np.allclose(
        BatchPredictor(publish(halved, name="half"))(data)["prediction"],
        halved(torch.ones(3, 4, dtype=torch.bfloat16)).detach().float().numpy(),
    )
    result = BatchPredictor(publish(TwoHeads(), name="heads"))({"data": np.ones((3, 4), dtype=np.float32)})
    assert {name: column.shape for name, column in result.items()} == {
        "data": (3, 4), "prediction": (3, 2), "prediction_box": (3, 4),
    }  # fmt: skip
    forget()


@dataclasses.dataclass
class Detected:
    """An answer with two tensors and something else."""

    scores: torch.Tensor
    box: torch.Tensor
    note: str = "fine"


class TwoHeads(nn.Module):
    """A model that answers with a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.box = nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Detected:
        """Return both."""
        return Detected(self.scores(x), self.box(x))


def test_fetch_from_the_publishing_node(ray: Any, simple_model: nn.Module, publish: Publish, eventually: Any) -> None:
    """What a far node does, done here under another node's name: the same bytes arrive once and go when unused."""
    from zerocopy._fetch import fetch

    ref = publish(simple_model, name="fetched")
    way = "fetched@1", ref.path, ref.node, "f" * 56
    with fetch(*way) as path, fetch(*way) as again:
        assert path == again != Path(ref.path)
        copy = dataclasses.replace(ref, path=str(path), node=None).load(cached=False)
        assert torch.equal(copy[0].weight, simple_model[0].weight)
        del copy
    assert eventually(lambda: not list(path.parent.glob(f"{path.name}*")))
    missing = "missing@1", f"{ref.path}-missing", ref.node, "f" * 56
    with pytest.raises(SegmentGoneError, match="missing@1 cannot be fetched from its node"), fetch(*missing):
        pass


def test_what_arrives_altered_is_refused(ray: Any, simple_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """Bytes that are not those published raise, name the tensor, and leave no segment for others to find."""
    from zerocopy._fetch import fetch

    ref, here = publish(simple_model, name="altered"), "e" * 56
    copy = tmp_path / "altered.zc"
    shutil.copy(ref.path, copy)
    copy.chmod(0o600)
    with copy.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(CorruptSegmentError, match=r"3\.bias"), fetch("altered@1", str(copy), ref.node, here):
        pass
    assert not list(Path(ref.path).parent.glob(f"*{here[:8]}*"))


def test_a_node_that_has_left(ray: Any, simple_model: nn.Module, publish: Publish) -> None:
    """A model of a node that is no more says so when it is loaded, and leaves nothing."""
    ref = publish(simple_model, name="left")
    lost = dataclasses.replace(ref, node="d" * 56)
    with pytest.raises(SegmentGoneError, match=r"left@1-[0-9a-f]+ cannot be fetched from its node"):
        lost.load(cached=False)
    assert [path for path in Path(ref.path).parent.glob("left@1*") if path != Path(ref.path)] == []


def test_actor_and_replica_in_this_process(simple_model: nn.Module, publish: Publish) -> None:
    """The classes that Ray runs elsewhere answer, reload and report writes."""
    pytest.importorskip("ray")
    from zerocopy import forget
    from zerocopy.on_ray import ModelActor, Replica

    first = publish(simple_model, name="here")
    older = first.load(cached=False)  # a version that something still uses stays loadable
    inputs = torch.ones(3, 8)
    actor, replica = ModelActor(first, refuse_writes=True), Replica(first, "__call__")
    assert torch.equal(actor.call(args=(inputs,)), asyncio.run(replica(inputs)))
    assert actor.written() == ()
    with torch.no_grad():
        simple_model[3].bias.add_(1)
    second = publish(simple_model, name="here")
    assert actor.reload(second) == 2
    replica.reconfigure({"ref": json.loads(json.dumps(second.as_dict()))})
    assert torch.equal(actor.call(args=(inputs,)), simple_model(inputs))
    assert torch.equal(asyncio.run(replica(inputs)), simple_model(inputs))
    replica.reconfigure({"ref": first.to_json()})
    assert torch.equal(asyncio.run(replica(inputs)), older(inputs))
    del older
    replica.reconfigure({"name": "here"})
    assert torch.equal(asyncio.run(replica(inputs)), simple_model(inputs))
    forget()


TWO_RAYLETS = """
import os, logging, sys
os.environ["RAY_AUTH_MODE"] = "disabled"
import torch, ray, zerocopy
from ray.cluster_utils import Cluster
store = 76 << 20
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": store})
cluster.add_node(num_cpus=4, resources={"far": 10}, object_store_memory=store)
ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=True)

class Worker:
    def load(self, ref):
        self.model = ref.load()
        with torch.no_grad():
            answer = self.model(torch.ones(1, 2048)).tolist()
        paths = {line.split()[-1] for line in open("/proc/self/maps") if ".zc" in line}
        return answer, [(path, os.stat(path).st_ino, os.stat(path).st_size) for path in paths]

torch.manual_seed(0)
model = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048) for _ in range(6)])
ref = zerocopy.publish(model, name="travels")
tuned = torch.nn.Sequential(*[*model[:5], torch.nn.Linear(2048, 2048)])
delta = zerocopy.publish(tuned, name="delta", base=ref)
workers = [ray.remote(Worker).options(resources={"far": 1}, num_cpus=1).remote() for _ in range(3)]
results = ray.get([worker.load.remote(ref) for worker in workers])
right = all(answer == model(torch.ones(1, 2048)).tolist() for answer, _ in results)
places = {place for _, mapped in results for place in mapped}
print("RESULT", ref.nbytes > store, right, len(places), all(path != ref.path for path, *_ in places))
answers = ray.get([worker.load.remote(delta) for worker in workers])
print("DELTA", all(answer == tuned(torch.ones(1, 2048)).tolist() for answer, _ in answers))
print("BASE", len({place for _, mapped in answers for place in mapped}), places <= {p for _, m in answers for p in m})
zerocopy.unpublish(ref)
missing = zerocopy.ModelRef("x", 1, "0" * 64, 1, ref.path + "-missing", ref.node)
try:
    ray.get(workers[0].load.remote(missing))
except zerocopy.errors.SegmentGoneError as error:
    print("GONE")
ray.shutdown()
cluster.shutdown()
print("COPIES", *(path for path, *_ in places))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_far_node_fetches_once(fresh_script: Any, eventually: Any) -> None:
    """Three workers of a second raylet, its store smaller than the model, get it once; a delta brings only itself."""
    pytest.importorskip("ray")
    printed = fresh_script(TWO_RAYLETS).stdout
    assert "RESULT True True 1 True" in printed, printed
    assert "DELTA True" in printed, printed
    assert "BASE 2 True" in printed, printed
    assert "GONE" in printed, printed
    copies = next(line for line in printed.splitlines() if line.startswith("COPIES")).split()[1:]
    assert eventually(lambda: not any(os.path.exists(path) for path in copies))
    assert not [path for copy in copies for path in Path(copy).parent.glob(f"{Path(copy).name}*")]


_FETCH = """
import time
from zerocopy import _fetch

class Reader:
    def options(self, **_): return self
    def remote(self, *_): return None

def get(_):
    print("half", flush=True)
    time.sleep(250)

_fetch._READ, _fetch.ray.get = Reader(), get
with _fetch.fetch("killed@1", "/nowhere", "a" * 56, "b" * 56):
    pass
"""


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing(tmp_path: Path, eventually: Any) -> None:
    """Neither the half copy, which may be as large as the model, nor the lock."""
    environment = {**os.environ, "ZEROCOPY_DIRECTORY": str(tmp_path / "here")}
    with subprocess.Popen([sys.executable, "-c", _FETCH], stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        assert len(list((tmp_path / "here").iterdir())) == 2
        child.kill()
    assert eventually(lambda: not list((tmp_path / "here").iterdir()))


def test_a_fetch_waits_for_the_removal_of_a_copy(ray: Any, simple_model: nn.Module, publish: Publish) -> None:
    """A copy is being removed, by its name, when the model is fetched again: the new copy is not removed with it."""
    from zerocopy._fetch import fetch

    ref = publish(simple_model, name="again")
    old = Path(ref.path).with_name("again@1-" + "c" * 8 + ".zc")
    shutil.copy(ref.path, old)
    stale = old.with_name(old.name + ".part")  # of a process that was killed while it fetched
    stale.touch(mode=0o600)
    removed = threading.Event()

    def ask() -> bool:
        with fetch("again@1", ref.path, ref.node, "c" * 56) as path:
            removed.wait(250)
            return path == old and dataclasses.replace(ref, path=str(path), node=None).load(cached=False) is not None

    with ThreadPoolExecutor() as pool, old.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        asking = pool.submit(ask)
        time.sleep(0.5)  # a process that does not wait has brought a copy by now
        old.unlink()
        stale.unlink()
        fcntl.flock(file, fcntl.LOCK_UN)
        removed.set()
        assert asking.result()


def test_a_node_fetches_once_however_many_ask(
    ray: Any, simple_model: nn.Module, publish: Publish, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four that ask at the same moment, with a slow transfer: one brings the model, and all have it."""
    from zerocopy import _fetch

    ref, brought, together, paths = publish(simple_model, name="rush"), [], threading.Barrier(4), []
    real = _fetch._bring

    def bring(*args: Any) -> int:
        brought.append(args)
        time.sleep(0.3)
        return real(*args)

    def ask() -> None:
        together.wait()
        with _fetch.fetch("rush@1", ref.path, ref.node, "b" * 56) as path:
            paths.append(path)
            together.wait()  # nobody gives it up before all have it

    monkeypatch.setattr(_fetch, "_bring", bring)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(250)
    assert (len(brought), len(paths), len(set(paths))) == (1, 4, 1)
    assert eventually(lambda: not list(paths[0].parent.glob(f"{paths[0].name}*")))
