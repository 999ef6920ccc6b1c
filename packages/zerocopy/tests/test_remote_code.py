"""Models whose code came with their checkpoint: the sources travel when publisher and loader both allow it."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import zerocopy
from zerocopy import ModelRef
from zerocopy.errors import RemoteCodeError

Publish = Callable[..., ModelRef]
pytestmark = pytest.mark.timeout(300)

CONFIGURATION = """
from transformers import PretrainedConfig

class TinyConfig(PretrainedConfig):
    model_type = "zerocopy_tiny"

    def __init__(self, width=16, **options):
        self.width = width
        super().__init__(**options)
"""
MODELING = """
import pathlib

import torch
from torch import nn
from transformers import PreTrainedModel

from .configuration_tiny import TinyConfig
from .squash import squash

pathlib.Path(FLAG).write_text("run")

class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(config.width, config.width)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, x):
        return squash(self.layer(x)) * SCALE
"""
LOADER = """
import inspect, json, sys, torch, zerocopy
ref = zerocopy.ModelRef.from_json(sys.argv[1])
try:
    ref.load()
except zerocopy.errors.RemoteCodeError as error:
    print("refused", "trust_remote_code=True" in str(error), any("TinyModel" in name for name in sys.modules))
try:
    zerocopy.follow(ref.name, directory=sys.argv[2])
except zerocopy.errors.RemoteCodeError:
    print("refused")
model = ref.load(trust_remote_code=True)
for load in (ref.load, lambda: zerocopy.call_model(ref, args=(torch.ones(1, 16),))):
    try:
        load()
    except zerocopy.errors.RemoteCodeError:
        print("refused again")
print(model(torch.ones(1, 16)).tolist() == json.loads(sys.argv[3]))
print("squash(self.layer(x))" in inspect.getsource(type(model).forward))
again = zerocopy.publish(model, directory=sys.argv[2], trust_remote_code=True)
print(again.load(cached=False, trust_remote_code=True)(torch.ones(1, 16)).tolist() == json.loads(sys.argv[3]))
live = zerocopy.follow(ref.name, directory=sys.argv[2], trust_remote_code=True)
print(live(torch.ones(1, 16)).tolist() == json.loads(sys.argv[3]))
print(zerocopy.call_model(ref, args=(torch.ones(1, 16),), trust_remote_code=True).tolist() == json.loads(sys.argv[3]))
"""


def checkpoint(folder: Path, scale: int) -> Path:
    """A checkpoint with code of its own, as on the Hub."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "configuration_tiny.py").write_text(CONFIGURATION)
    (folder / "squash.py").write_text("import torch\n\nsquash = torch.tanh\n")
    text = MODELING.replace("FLAG", repr(str(folder.parent / "flag"))).replace("SCALE", str(scale))
    (folder / "modeling_tiny.py").write_text(text)
    names = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "zerocopy_tiny", "width": 16, "auto_map": names}))
    weights = torch.arange(256.0).reshape(16, 16) / 999
    save_file({"layer.weight": weights, "layer.bias": torch.zeros(16)}, folder / "model.safetensors", {"format": "pt"})
    return folder


PLAIN = """
import pathlib

import torch

from .squash import squash

pathlib.Path(FLAG).write_text("run")


class TinyModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 16)

    def forward(self, x):
        return squash(self.layer(x)) * 3
"""


@pytest.fixture(autouse=True)
def own_modules() -> Iterator[None]:
    """Forget the modules of other tests' checkpoints, which have the same names."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def test_code_travels_by_content(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, fresh_python: Any
) -> None:
    """A process without the modules gets them; refused on either side, nothing of them runs."""
    package = tmp_path / "modules" / "transformers_modules" / "tiny" / "abc123"
    package.mkdir(parents=True)
    (package / "squash.py").write_text("import torch\n\nsquash = torch.tanh\n")
    (package / "modeling_tiny.py").write_text(PLAIN.replace("FLAG", repr(str(tmp_path / "flag"))))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    segments = tmp_path / "segments"
    name = "transformers_modules.tiny.abc123.modeling_tiny"
    before = set(sys.modules)
    try:
        model = importlib.import_module(name).TinyModel()
        with pytest.raises(RemoteCodeError, match=r"modeling_tiny.*trust_remote_code=True here and to load"):
            zerocopy.publish(model, directory=segments)
        assert list(segments.iterdir()) == []
        ref = publish(model, name="tiny", directory=segments, trust_remote_code=True)
        (tmp_path / "flag").unlink()
        with pytest.raises(RemoteCodeError, match="nothing of it was run"):
            ref.load()
        assert not (tmp_path / "flag").exists()
        wanted = json.dumps(model(torch.ones(1, 16)).tolist())
        printed = fresh_python(LOADER, ref.to_json(), str(segments), wanted).stdout
        assert printed.splitlines() == ["refused True False", "refused", *["refused again"] * 2, *["True"] * 5]
        shared = zerocopy.share(
            "t", importlib.import_module(name).TinyModel, directory=segments, trust_remote_code=True
        )
        assert shared(torch.ones(1, 16)).shape == (1, 16)
        zerocopy.unpublish(zerocopy.current("t", directory=segments))
        with pytest.raises(RemoteCodeError, match="trust_remote_code=True here"):
            zerocopy.rewrite_pipeline([model], mode="local")
        (pipe,) = zerocopy.rewrite_pipeline([model], mode="local", trust_remote_code=True)
        assert pickle.loads(pickle.dumps(pipe))(torch.ones(1, 16)).tolist() == json.loads(wanted)
        zerocopy.forget()
        zerocopy.unpublish(pipe.ref)
    finally:
        for each in set(sys.modules) - before:
            if each.startswith(("transformers_modules", "zerocopy_remote_")):
                del sys.modules[each]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["task", "actor"])
def test_code_travels_to_ray_workers(mode: str, ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewritten pipeline runs in workers that lack the modules, and only where that is allowed."""
    package = tmp_path / "modules" / "transformers_modules" / "tiny" / f"for_{mode}"
    package.mkdir(parents=True)
    (package / "squash.py").write_text("import torch\n\nsquash = torch.tanh\n")
    (package / "modeling_tiny.py").write_text(PLAIN.replace("FLAG", repr(str(tmp_path / "flag"))))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    before = set(sys.modules)
    options = {"num_cpus": 0.5}
    try:
        model = importlib.import_module(f"transformers_modules.tiny.for_{mode}.modeling_tiny").TinyModel()
        (tmp_path / "flag").unlink()
        with pytest.raises(RemoteCodeError, match="trust_remote_code=True here"):
            zerocopy.rewrite_pipeline([model], mode=mode, options=options)
        (pipe,) = zerocopy.rewrite_pipeline([model], mode=mode, options=options, trust_remote_code=True)
        inputs = torch.ones(1, 16)
        assert not (tmp_path / "flag").exists()
        assert torch.equal(pipe(inputs), model(inputs))
        assert (tmp_path / "flag").exists()  # the code ran in the worker
        asked = ray.remote(lambda part: part(inputs)).options(**options)
        assert torch.equal(ray.get(asked.remote(pipe)), model(inputs))  # from a worker that has the pipeline
        with pytest.raises(RemoteCodeError, match="nothing of it was run"):
            ray.get(ray.remote(zerocopy.call_model).remote(pipe.ref, "__call__", (inputs,)))
        zerocopy.forget()
        zerocopy.unpublish(pipe.ref)
    finally:
        for each in set(sys.modules) - before:
            if each.startswith(("transformers_modules", "zerocopy_remote_")):
                del sys.modules[each]


@pytest.mark.slow
def test_a_checkpoint_of_transformers(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, fresh_python: Any
) -> None:
    """Configuration and model come from two modules; two checkpoints with equal names keep to their own code."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder, segments = checkpoint(tmp_path / "tiny", 3), tmp_path / "segments"
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with pytest.raises(RemoteCodeError, match=r"TinyModel|modeling_tiny.*trust_remote_code=True here and to load"):
        zerocopy.publish(model, directory=segments)
    assert list(segments.iterdir()) == []
    ref = publish(model, name="tiny", directory=segments, trust_remote_code=True)
    wanted = model(torch.ones(1, 16)).tolist()
    (tmp_path / "flag").unlink()
    with pytest.raises(RemoteCodeError, match="nothing of it was run"):
        ref.load()
    assert not (tmp_path / "flag").exists()
    printed = fresh_python(LOADER, ref.to_json(), str(segments), json.dumps(wanted)).stdout
    assert printed.splitlines() == ["refused True False", "refused", *["refused again"] * 2, *["True"] * 5]
    second = zerocopy.from_pretrained(
        checkpoint(tmp_path / "other", 5), "AutoModel", directory=segments, trust_remote_code=True
    )
    with torch.no_grad():
        mine, other = (each.load(trust_remote_code=True)(torch.ones(1, 16)) for each in (ref, second))
    assert torch.allclose(other * 3, mine * 5)  # each with its own code
    zerocopy.unpublish(second)
