"""The Hugging Face Hub and GitHub Releases, through their own clients, against a server on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

import ternary
from ternary.errors import ExportError, ManifestError
from ternary.export import export, to_github, to_hub, verify


@pytest.fixture(scope="session")
def hub() -> ModuleType:
    """The module of the local server."""
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location("ternary_suite_local_hub", Path(__file__).with_name("local_hub.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(hub: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A server of its own for each test."""
    # The server speaks plain LFS; the client's other protocol has a store, and a log file, of its own.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    running = hub.start()
    yield running
    huggingface_hub.close_session()  # its connections would outlive the server
    hub.stop(running)


@pytest.fixture
def folder(temp_dir: Path, compiled_simple_model: nn.Module) -> Path:
    """An exported folder."""
    export(compiled_simple_model, temp_dir / "release", ["safetensors", "base3"], name="simple")
    return temp_dir / "release"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own LFS upload
@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_hub_round_trip(server, hub, folder: Path, temp_dir: Path, mode: str) -> None:
    """What was uploaded in one commit is downloaded by the hub's own client and computes the same."""
    server.upload_mode = mode
    address = to_hub(folder, "someone/simple", token=hub.TOKEN, endpoint=server.address)
    assert address.startswith(server.address)
    assert server.commits == {"someone/simple": [3]}
    assert set(server.files["someone/simple"]) == {p.name for p in folder.iterdir()}
    assert bool(server.objects) == (mode == "lfs")
    for name in ("manifest.json", "simple.safetensors", "simple.base3.safetensors"):
        huggingface_hub.hf_hub_download(
            "someone/simple", name, endpoint=server.address, local_dir=temp_dir / "down", token=hub.TOKEN
        )
    assert verify(temp_dir / "down") == verify(folder)
    x = torch.randn(3, 16)
    first, second = (ternary.load(f / "simple.safetensors", packed=True) for f in (folder, temp_dir / "down"))
    assert torch.equal(first(x), second(x))
    to_hub(folder, "someone/simple", token=hub.TOKEN, endpoint=server.address)  # again, into the same repository


def test_hub_refuses_a_wrong_token(server, folder: Path) -> None:
    """The client's own error comes through, and nothing is there."""
    with pytest.raises(HfHubHTTPError, match="401"):
        to_hub(folder, "someone/simple", token="hf_wrong", endpoint=server.address)
    assert server.files == {}


def test_files_only_of_the_manifest_are_uploaded(server, hub, folder: Path) -> None:
    """Other files in the folder stay at home."""
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    to_hub(folder, "someone/simple", token=hub.TOKEN, endpoint=server.address)
    assert "notes.txt" not in server.files["someone/simple"]


def test_github_release(server, hub, folder: Path) -> None:
    """Every file is an asset with the digest of the manifest; the release is published at the end."""
    address = to_github(folder, "someone/simple", "v1", token=hub.TOKEN, base_url=f"{server.address}/api/v3")
    release = server.releases[1]
    assert address == release["html_url"]
    assert release["draft"] is False
    assert release["tag_name"] == "v1"
    manifest = verify(folder)
    for file in manifest.files:
        assert hashlib.sha256(server.assets[file.name]).hexdigest() == file.sha256
        assert file.sha256 in release["body"]
    assert server.assets["manifest.json"] == (folder / "manifest.json").read_bytes()


def test_github_draft_and_notes(server, hub, folder: Path) -> None:
    """A draft stays one, with the text that was given."""
    to_github(
        folder, "someone/simple", "v1", token=hub.TOKEN, notes="hello", draft=True, base_url=f"{server.address}/api/v3"
    )
    assert server.releases[1]["draft"] is True
    assert server.releases[1]["body"] == "hello"


def test_github_failures(server, hub, folder: Path) -> None:
    """A refused asset leaves an unpublished draft; a wrong token or repository is a named error."""
    base = f"{server.address}/api/v3"
    server.fail_upload = "simple.base3.safetensors"
    with pytest.raises(ExportError, match="422"):
        to_github(folder, "someone/simple", "v1", token=hub.TOKEN, base_url=base)
    assert server.releases[1]["draft"] is True
    with pytest.raises(ExportError, match="404"):
        to_github(folder, "someone/none", "v1", token=hub.TOKEN, base_url=base)
    with pytest.raises(ExportError, match="401"):
        to_github(folder, "someone/simple", "v1", token="wrong", base_url=base)


def test_damaged_exports_are_not_published(server, hub, folder: Path) -> None:
    """A file that changed after the export stops both before anything is sent."""
    with (folder / "simple.safetensors").open("ab") as f:
        f.write(b"!")
    with pytest.raises(ManifestError, match="differs"):
        to_hub(folder, "someone/simple", token=hub.TOKEN, endpoint=server.address)
    with pytest.raises(ManifestError, match="differs"):
        to_github(folder, "someone/simple", "v1", token=hub.TOKEN, base_url=f"{server.address}/api/v3")
    assert server.files == {}
    assert server.releases == {}
