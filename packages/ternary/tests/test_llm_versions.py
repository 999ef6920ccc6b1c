"""A server whose model changes while requests run, with the official client of OpenAI over a socket of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import runpy
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from ternary.errors import ModelFileError
from ternary.llm import _versions, load

openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

pytestmark = pytest.mark.timeout(300)

words = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("llm_words.py"))))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Two model files of one shape with different weights."""
    folder = tmp_path_factory.mktemp("versions")
    return [words.save_words(folder / f"m{seed}.ternary", seed) for seed in (0, 1)]


@pytest.fixture(autouse=True)
def collected():
    """Models in reference cycles keep their file mapped until a collection."""
    yield
    gc.collect()


class Files:
    """A source: the newest version is what `publish` was given last."""

    def __init__(self, model):
        self.number, self.model = 1, model

    def publish(self, model):
        """Make a model the newest version."""
        self.number, self.model = self.number + 1, model

    def get(self):
        """The newest version and its model."""
        if isinstance(self.model, Exception):
            raise self.model
        return self.number, self.model


@contextlib.contextmanager
def serving(source, name=None, parallel=4):
    """A server on a thread: its address, client, versions, and schedulers' threads."""
    from ternary.llm._server import application

    versions = _versions.Versions(source, name, parallel, 16, {"threads": 1, "context": words.CONTEXT})
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(versions), log_level="error", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
            yield SimpleNamespace(url=url, client=client, versions=versions)
    finally:
        server.should_exit = True
        thread.join()
        versions.close()
        listening.close()


def ask(made, prompt="the quick", **options):
    """The answer to a prompt."""
    return made.client.completions.create(model="any", prompt=prompt, **{"max_tokens": 5, **options})


def health(made):
    """What monitors read."""
    with urllib.request.urlopen(made.url + "/health", timeout=200) as answer:
        return json.load(answer)


def metrics(made):
    """The counters by name."""
    with urllib.request.urlopen(made.url + "/metrics", timeout=200) as answer:
        lines = answer.read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_a_new_version_answers_the_next_request(paths) -> None:
    """The answer, its name and fingerprint, `/v1/models`, health and metrics are those of the newer version."""
    source = Files(paths[0])
    with serving(source) as made:
        texts = [load(path).generate("the quick", max_tokens=5).text() for path in paths]
        assert texts[0] != texts[1]
        first = ask(made)
        assert (first.choices[0].text, first.model, first.system_fingerprint) == (texts[0], "m0", "1")
        source.publish(paths[1])
        second = ask(made)
        assert (second.choices[0].text, second.model, second.system_fingerprint) == (texts[1], "m1", "2")
        assert [model.id for model in made.client.models.list()] == ["m1"]
        assert health(made) == {"status": "ok", "model": "m1", "version": "2", "running": 0, "waiting": 0}
        words.eventually(lambda: len(made.versions._open_ones) == 1)
        found = metrics(made)
    assert found['ternary_model_info{model="m1",version="2"}'] == "1"
    assert found["ternary_finished_total"] == "2"  # of both versions
    assert found["ternary_versions_refused_total"] == "0"


def test_rollouts_under_load(paths) -> None:
    """Whole answers, chats and streams while versions change: each is wholly what its version says alone."""
    prompts = ["the quick", "brown fox jumps over the lazy dog " * 9, "lazy dog", "jumps over"]
    options = {"max_tokens": 12, "temperature": 0.9, "seed": 4}
    alone = {(path.stem, prompt): load(path).generate(prompt, **options).text() for path in paths for prompt in prompts}
    source, seen, stop = Files(paths[0]), set(), threading.Event()

    def client(number):
        asked = 0
        while not (stop.is_set() and asked >= 4):
            prompt = prompts[(asked + number) % 4]
            if asked % 2:
                parts = list(ask(made, prompt, **options, stream=True))
                text, names = "".join(p.choices[0].text for p in parts), {p.model for p in parts}
            else:
                answer = ask(made, prompt, **options)
                text, names = answer.choices[0].text, {answer.model}
            assert len(names) == 1
            assert text == alone[next(iter(names)), prompt]
            seen.update(names)
            asked += 1
        return asked

    with serving(source) as made, ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        for number in range(1, 7):
            before = made.versions.counters().finished
            words.eventually(lambda before=before: made.versions.counters().finished >= before + 4)
            source.publish(paths[number % 2])
        stop.set()
        asked = sum(each.result() for each in clients)
        words.eventually(lambda: len(made.versions._open_ones) == 1)
        counters = made.versions.counters()
    assert seen == {"m0", "m1"}
    assert (counters.finished, counters.failed, counters.rejected) == (asked, 0, 0)


def test_the_old_version_ends_with_its_last_request(paths) -> None:
    """A text goes on with its version while others get the newer one; then the older one is closed and freed."""
    source = Files(paths[0])
    options = {"max_tokens": 400, "temperature": 1.5, "seed": 1}
    alone = load(paths[0]).generate("the", **options).text()
    with serving(source) as made:
        stream = iter(ask(made, "the", **options, stream=True))
        pieces = [next(stream).choices[0].text]
        older = made.versions.current
        gone, thread = weakref.ref(older.model), older.scheduler._thread
        source.publish(paths[1])
        assert ask(made).model == "m1"
        del older
        pieces += [part.choices[0].text for part in stream]
        assert "".join(pieces) == alone
        thread.join(200)
        assert not thread.is_alive()
        words.eventually(lambda: gc.collect() >= 0 and gone() is None)


def test_a_client_that_leaves_ends_the_old_version(paths) -> None:
    """The text of a client that has left does not keep an older version."""
    source = Files(paths[0])
    with serving(source) as made:
        stream = ask(made, "the", **words.ENDLESS)
        next(iter(stream))
        thread = made.versions.current.scheduler._thread
        source.publish(paths[1])
        ask(made)
        assert [version.name for version in made.versions._open_ones] == ["m0", "m1"]
        stream.close()
        thread.join(200)
        assert not thread.is_alive()
        words.eventually(lambda: [version.name for version in made.versions._open_ones] == ["m1"])
        assert made.versions.counters().cancelled == 1


def test_keys_and_values_stay_with_their_version(paths) -> None:
    """A prompt that the older version has seen is computed anew by the newer one."""
    source = Files(paths[0])
    prompt = "brown fox jumps over the lazy dog " * 3
    with serving(source) as made:
        assert ask(made, prompt).usage.prompt_tokens_details.cached_tokens == 0
        assert ask(made, prompt).usage.prompt_tokens_details.cached_tokens > 0
        source.publish(paths[1])
        assert ask(made, prompt).usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("broken", ["damaged", "other", "missing", "raises"])
def test_a_version_that_cannot_be_opened_is_not_used(paths, tmp_path, caplog, monkeypatch, broken) -> None:
    """The one before answers on, and log, health and metrics say why; the next good version is used."""
    monkeypatch.setattr(_versions, "PAUSE", 0.0)
    (tmp_path / "damaged.ternary").write_bytes(paths[1].read_bytes()[:4000])
    source = Files(paths[0])
    bad = {"damaged": tmp_path / "damaged.ternary", "other": {"no": "model"}, "missing": tmp_path / "missing"}
    with serving(source) as made:
        text = ask(made).choices[0].text
        source.publish(bad.get(broken, RuntimeError("the registry is away")))
        for _ in range(2):
            answer = ask(made)
            assert (answer.choices[0].text, answer.model) == (text, "m0")
        found = health(made)
        assert (found["status"], found["model"], found["version"]) == ("ok", "m0", "1")
        assert ("the registry is away" if broken == "raises" else "version 2: ") in found["refused"]
        assert int(metrics(made)["ternary_versions_refused_total"]) >= 2
        assert len([record for record in caplog.records if "keeping version 1" in record.message]) == 1
        source.publish(paths[1])
        assert ask(made).model == "m1"
        words.eventually(lambda: "refused" not in health(made))


def test_an_idle_server_changes_when_its_health_is_asked(paths) -> None:
    """It does not hold the older version until somebody asks for a text."""
    source = Files(paths[0])
    with serving(source) as made:
        source.publish(paths[1])
        words.eventually(lambda: health(made)["version"] == "2")
        words.eventually(lambda: len(made.versions._open_ones) == 1)


def test_a_broken_version_is_not_tried_for_every_request(paths) -> None:
    """After a failure requests do not wait for the same version again at once."""
    source = Files(paths[0])
    with serving(source) as made:
        source.publish({"no": "model"})
        made.versions.newest()
        made.versions._again = float("inf")
        for _ in range(3):
            assert ask(made).model == "m0"
        assert made.versions.refused == 1


def test_closing_ends_older_versions_too(paths) -> None:
    """No thread of a version stays, also while requests run in two of them."""
    source = Files(paths[0])
    with serving(source) as made:
        streams = []
        for path in (paths[1], paths[0]):
            streams.append(ask(made, "the", **words.ENDLESS))
            next(iter(streams[-1]))
            source.publish(path)
        running = list(made.versions._open_ones)
        assert [version.name for version in running] == ["m0", "m1"]
        made.versions.close()
        assert not any(version.scheduler._thread.is_alive() for version in running)
        assert made.versions._open_ones == []
        for stream in streams:
            stream.close()


def test_a_first_version_that_is_no_model_is_refused() -> None:
    """Nothing is served, and the error says what was found."""
    with pytest.raises(ModelFileError, match="got a dict, no language model"):
        _versions.Versions(Files({}), None, 4, 4, {})


def test_following_a_published_name(paths) -> None:
    """`zerocopy.follow` is a source: the newest published version answers, and the older one's segment goes."""
    zerocopy = pytest.importorskip("zerocopy")
    from ternary.llm import publish

    name = f"versions-{socket.gethostname()}-{time.time_ns()}"
    first = publish(paths[0], name=name)
    with serving(zerocopy.follow(name)) as made:
        assert (ask(made).model, health(made)["version"]) == ("m0", "1")
        second = publish(paths[1], name=name)
        answer = ask(made)
        assert (answer.model, answer.system_fingerprint) == ("m1", "2")
        assert answer.choices[0].text == load(paths[1]).generate("the quick", max_tokens=5).text()
        words.eventually(lambda: gc.collect() >= 0 and not Path(first.path).exists())
        zerocopy.unpublish(second)
        assert ask(made).model == "m1"  # it stays as long as it is loaded


def test_share_and_follow_by_command(paths, tmp_path) -> None:
    """`ternary share` and `ternary serve --follow` in processes of their own, with a refused and a newer file."""
    pytest.importorskip("zerocopy")
    name, ternary = f"versions-{time.time_ns()}", [sys.executable, "-m", "ternary"]
    shutil.copy(paths[1], tmp_path / "newer.ternary")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*ternary, "share", str(paths[0]), "--name", name], **pipes) as share:
        assert share.stdout.readline() == f"version 1: {paths[0]}\n"
        serve = [*ternary, "serve", "--follow", name, "--port", "0", "--threads", "1"]
        with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
            try:
                url = next(line.split()[-5] for line in server.stderr if "running on" in line)
                with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
                    made = SimpleNamespace(client=client)
                    assert ask(made).model == "m0"
                    for line, said in ((tmp_path / "none", "refused: "), (tmp_path / "newer.ternary", "version 2: ")):
                        share.stdin.write(f"{line}\n")
                        share.stdin.flush()
                        assert share.stdout.readline().startswith(said)
                    assert ask(made).model == "newer"
            finally:
                server.send_signal(2)
                server.communicate(timeout=200)
        share.communicate(timeout=200)
    assert share.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "word"), [([], "either a model or"), (["m", "--follow", "n"], "either"), (["--follow", "no"], "no")]
)
def test_serve_says_what_is_missing(arguments, word, capsys) -> None:
    """Neither, both, or a name that nothing is shared under: an error of one line and status 2."""
    pytest.importorskip("zerocopy")
    from ternary._cli import main

    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1
