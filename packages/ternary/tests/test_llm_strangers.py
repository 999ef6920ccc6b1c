"""Checkpoints as people have them: the Hub's cache, half a download, odd templates, tokens that are no text."""

from __future__ import annotations

import json
import os
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ternary._cli.entry import main
from ternary.errors import ChatTemplateError, ImportFormatError
from ternary.llm import load
from ternary.llm._hubcache import model_name
from ternary.llm._tokenizer import Tokenizer

pytestmark = pytest.mark.timeout(300)  # transformers alone takes long to import on a busy machine
models = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("llm_models.py"))))
MESSAGES = [{"role": "user", "content": "the quick"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a BitNet in two shards with an index, as the Hub has it."""
    made = tmp_path_factory.mktemp("checkpoint") / "bitnet-b1.58-2B"
    model = models.hugging_face_model("bitnet", tie_word_embeddings=True)
    models.save_packed(model, made, shards=2)
    models.small_tokenizer(made)
    shards = sorted(made.glob("*.safetensors"))
    names = {f"tensor-{at}": file.name for at, file in enumerate(shards)}
    (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Converted files and the Hub's cache lie in the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "huggingface" / "hub"


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def in_hub(folder, cache, revisions=("abc",), main_is="abc"):
    """The folder as `hf download` leaves it: blobs, and links to them in a snapshot."""
    top = cache / "models--owner--bitnet-b1.58-2B"
    (top / "blobs").mkdir(parents=True)
    for file in folder.iterdir():
        shutil.copy(file, top / "blobs" / file.name)
    for revision in revisions:
        snapshot = top / "snapshots" / revision
        snapshot.mkdir(parents=True)
        for file in folder.iterdir():
            (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    if main_is:
        (top / "refs").mkdir()
        (top / "refs" / "main").write_text(main_is)
    return top


class TestHub:
    """Models in the Hub's cache."""

    def test_by_name_by_folder_and_by_snapshot(self, folder, cache) -> None:
        """All three are the model that its own folder is."""
        top = in_hub(folder, cache, revisions=("abc", "older"))
        expected = load(folder, threads=1).generate(MESSAGES, max_tokens=4).tokens
        for place in ("owner/bitnet-b1.58-2B", top, top / "snapshots" / "abc"):
            assert load(place, threads=1).generate(MESSAGES, max_tokens=4).tokens == expected
        assert model_name(top / "snapshots" / "abc") == "bitnet-b1.58-2B"
        assert model_name(folder) == "bitnet-b1.58-2B"

    def test_the_only_snapshot_needs_no_branch(self, folder, cache) -> None:
        """As `hf download --revision` leaves it; of two, one has to be named."""
        in_hub(folder, cache, main_is=None)
        assert load("owner/bitnet-b1.58-2B", threads=1).config.layers == 3

    def test_several_snapshots_without_a_branch_are_refused(self, folder, cache) -> None:
        """With the names that there are."""
        in_hub(folder, cache, revisions=("one", "two"), main_is=None)
        with pytest.raises(ImportFormatError, match="one, two"):
            load("owner/bitnet-b1.58-2B")

    def test_a_name_that_is_not_there(self, capsys) -> None:
        """The command says what to do; a file's name is no model's name."""
        assert main(["generate", "owner/none", "text"]) == 2
        assert "hf download owner/none" in capsys.readouterr().err
        with pytest.raises(FileNotFoundError, match="No such file"):
            load("folder/none.gguf")


class TestDownloads:
    """Folders that are not what they should be."""

    def test_a_missing_shard_is_named(self, copy) -> None:
        """Not the first tensor that it holds."""
        (copy / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(ImportFormatError, match=r"model-00002-of-00002\.safetensors is missing"):
            load(copy)

    def test_files_beside_the_index_are_not_weights(self, copy, folder) -> None:
        """Such as an adapter, or the same weights once more in another layout."""
        (copy / "adapter.safetensors").write_bytes(b"no tensors")
        assert load(copy, threads=1).logits([1]).tolist() == load(folder, threads=1).logits([1]).tolist()

    def test_pointers_of_git_lfs(self, copy) -> None:
        """A clone without Git LFS."""
        file = copy / "model-00001-of-00002.safetensors"
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with pytest.raises(ImportFormatError, match="Git LFS"):
            load(copy)

    @pytest.mark.parametrize("index", ["[]", '{"weight_map": 3}', '{"weight_map": {"a": "../../x.safetensors"}}'])
    def test_a_damaged_index(self, index, copy) -> None:
        """It lists files of its own folder, or is refused."""
        (copy / "model.safetensors.index.json").write_text(index)
        with pytest.raises(ImportFormatError, match="index"):
            load(copy)

    def test_weights_of_another_kind(self, copy) -> None:
        """Only a pickle: it is named, and not opened."""
        for file in copy.glob("model*"):
            file.unlink()
        (copy / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(ImportFormatError, match=r"pytorch_model\.bin"):
            load(copy)


class TestNoCacheFolder:
    """Containers in which a user has no home, or none that it can write to."""

    def test_no_home(self, folder, monkeypatch, capsys) -> None:
        """One line that names the variable."""
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        assert main(["generate", str(folder), "the"]) == 2
        assert "set XDG_CACHE_HOME" in capsys.readouterr().err

    def test_a_folder_that_cannot_be_made(self, folder, tmp_path, monkeypatch, capsys) -> None:
        """The same, with the system's reason."""
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert main(["generate", str(folder), "the"]) == 2
        said = capsys.readouterr().err
        assert "set XDG_CACHE_HOME" in said
        assert said.count("\n") == 1


def test_bytes_that_are_no_text(folder, capsys) -> None:
    """From standard input, an argument or JSON: one line."""
    broken = b"ab\xff".decode("utf-8", "surrogateescape")
    assert main(["generate", str(folder), broken]) == 2
    assert "not Unicode: '\\udcff' at character 2" in capsys.readouterr().err
    with pytest.raises(ValueError, match="not Unicode"):
        load(folder, threads=1).generate([{"role": "user", "content": "\ud800"}])


def tokenizer_of(folder, template, **metadata):
    """The folder's tokenizer with another template."""
    text = (folder / "tokenizer.json").read_text()
    return Tokenizer(text, {"chat_template": template, "eos_token": "</s>", **metadata})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", "the quick"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "the quick"),
        ("{% if tools is not none %}tools{% endif %}{{ messages[0]['content'] | trim }}", "the quick"),
        (
            "{{ messages[0] | tojson(indent=1, separators=(',', ':')) }}",
            json.dumps(MESSAGES[0], indent=1, separators=(",", ":")),
        ),
    ],
)
def test_what_templates_use(template, expected, folder) -> None:
    """Tags and filters that transformers' environment has."""
    tokenizer = tokenizer_of(folder, template)
    assert tokenizer.decode(tokenizer.chat(MESSAGES)) == expected


def test_a_template_that_refuses(folder) -> None:
    """Its own words come through, once."""
    with pytest.raises(ChatTemplateError, match=r"^the chat template refuses the messages: no system$"):
        tokenizer_of(folder, "{{ raise_exception('no system') }}").chat(MESSAGES)


def test_the_end_of_a_turn_ends_a_text(folder) -> None:
    """The token with which the template closes a turn, where it is a special one; not any word of the template."""
    assert tokenizer_of(folder, "x", eos_token=None).ends() == frozenset()
    assert tokenizer_of(folder, "{{ messages[0].content }}</s>", eos_token=None).ends() == {2}
    assert tokenizer_of(folder, "x").ends() == {2}
    assert tokenizer_of(folder, "x", eos_token="the").ends() == frozenset()  # a word of its own, but not special


def test_settings_of_training_do_not_cut_prompts(folder) -> None:
    """Published tokenizers may say that texts are cut or filled up to a length."""
    settings_of_training = json.loads((folder / "tokenizer.json").read_text())
    settings_of_training["truncation"] = {
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    settings_of_training["padding"] = dict.fromkeys(("pad_to_multiple_of",)) | {"strategy": {"Fixed": 64}}
    settings_of_training["padding"] |= {"direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    found = Tokenizer(json.dumps(settings_of_training), {}).encode("the quick brown fox")
    assert found == Tokenizer((folder / "tokenizer.json").read_text(), {}).encode("the quick brown fox")


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "\u2581a", "\u2581b", "é"]


def byte_fallback():
    """A tokenizer of the SentencePiece kind, whose bytes are tokens."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    decoders = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}]
    decoders += [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    model = {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "merges": [["\u2581", "a"], ["\u2581", "b"]]}
    before = [{"type": "Prepend", "prepend": "\u2581"}]
    before += [{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
    whole = {
        "version": "1.0",
        "added_tokens": [{"id": at, "content": PIECES[at], **special} for at in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": before},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {**model, "vocab": {piece: at for at, piece in enumerate(PIECES)}},
    }
    return Tokenizer(json.dumps(whole), {})


BYTES = byte_fallback()


@settings(max_examples=300)
@example([3, 35, 131])
@given(st.lists(st.integers(0, len(PIECES) + 3), max_size=12))
def test_no_tokens_are_an_error_in_a_stream(ids) -> None:
    """Bytes in any order, tokens past the vocabulary. Decoding at once may turn more of the bytes into marks."""
    stream = BYTES.stream()
    text = "".join([*(stream.add(token) for token in ids), stream.rest()])
    whole = BYTES.decode(ids)
    assert bool(text) == bool(whole)
    left = iter(text)
    assert all(character in left for character in whole if character != "\ufffd"), (text, whole)


@settings(max_examples=200)
@given(st.text(max_size=12))
def test_a_text_comes_back_in_pieces(text) -> None:
    """Every text, through tokens of bytes, equals what decoding at once returns."""
    ids, stream = BYTES.encode(text), BYTES.stream()
    assert "".join([*(stream.add(token) for token in ids), stream.rest()]) == BYTES.decode(ids)
