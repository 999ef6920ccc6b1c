"""The server, with the official client of OpenAI over a socket of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import runpy
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from ternary.errors import ServerBusyError
from ternary.llm import Sampling, application, convert, load
from ternary.llm._batching import Request, Scheduler
from ternary.llm._versions import Versions

openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

pytestmark = pytest.mark.timeout(300)  # transformers alone takes long to import on a busy machine


def beside(name):
    """A helper file of this folder: without packages it cannot be imported by name."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name(name))))


models, words = beside("llm_models.py"), beside("llm_words.py")
MESSAGES = [{"role": "user", "content": "the quick fox"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model file of a BitNet with a tokenizer."""
    folder, _ = models.folder_of(tmp_path_factory.mktemp("serve"), max_position_embeddings=2048)
    convert(folder, folder.with_suffix(".ternary"))
    return folder.with_suffix(".ternary")


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model file whose texts go on until their client leaves."""
    return words.save_words(tmp_path_factory.mktemp("endless") / "endless.ternary")


@pytest.fixture(autouse=True)
def collected():
    """Models in reference cycles keep their file mapped until a collection."""
    yield
    gc.collect()


@contextlib.contextmanager
def serving(path, parallel=4, queue=4, **options):
    """A server on a thread, and its address."""
    from ternary.llm._server import application

    versions = Versions(path, "small", parallel, queue, {"threads": 1, **options})
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(application(versions), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    made = SimpleNamespace(url=f"http://127.0.0.1:{listening.getsockname()[1]}", scheduler=versions.current.scheduler)
    try:
        yield made
    finally:
        vars(made).clear()
        server.should_exit = True
        thread.join()
        versions.close()
        listening.close()
        gc.collect()


@pytest.fixture
def served(path):
    """A server for one test."""
    with serving(path) as made:
        yield made


@contextlib.contextmanager
def client_of(made):
    """The official client."""
    with openai.OpenAI(base_url=made.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def get(url):
    """The body behind an address."""
    with urllib.request.urlopen(url, timeout=200) as answer:
        return answer.read().decode()


def test_chat_and_completion_equal_the_model(served, path) -> None:
    """Whole answers and streams: the text that the model generates alone, with its usage."""
    alone = load(path).generate(MESSAGES, max_tokens=9)
    text = alone.text()
    with client_of(served) as client:
        answer = client.chat.completions.create(model="small", messages=MESSAGES, max_tokens=9)
        assert answer.choices[0].message.content == text
        assert answer.choices[0].finish_reason == alone.finish
        assert answer.usage.prompt_tokens == alone.prompt_tokens
        assert answer.usage.completion_tokens == len(alone.tokens)
        stream = client.chat.completions.create(
            model="small", messages=MESSAGES, max_tokens=9, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
        assert chunks[-1].usage.completion_tokens == len(alone.tokens)
        plain = load(path).generate("the quick", max_tokens=5).text()
        assert client.completions.create(model="small", prompt="the quick", max_tokens=5).choices[0].text == plain
        parts = client.completions.create(model="small", prompt="the quick", max_tokens=5, stream=True)
        assert "".join(p.choices[0].text for p in parts) == plain
        assert [m.id for m in client.models.list()] == ["small"]


def test_many_at_once_equal_alone(path) -> None:
    """Requests of different lengths side by side, more than run at once: each text as alone."""
    prompts = ["the quick", "brown fox jumps over the lazy dog " * 9, "lazy dog", "Grüße", "jumps over", "a", "b", "c"]
    expected = [load(path).generate(p, max_tokens=12, temperature=0.9, seed=4).text() for p in prompts]
    with serving(path, parallel=3, queue=8) as made, client_of(made) as client, ThreadPoolExecutor(8) as pool:

        def ask(prompt):
            answer = client.completions.create(
                model="small", prompt=prompt, max_tokens=12, temperature=0.9, seed=4, extra_body={"top_k": 256}
            )
            return answer.choices[0].text

        assert list(pool.map(ask, prompts)) == expected
        counters = made.scheduler.counters
        assert (counters.finished, counters.failed) == (8, 0)
        assert counters.steps < counters.generated_tokens


def test_a_client_that_leaves_cancels(endless) -> None:
    """A stream that is closed stops generating; the server goes on."""
    with serving(endless, context=words.CONTEXT) as made, client_of(made) as client:
        stream = client.completions.create(model="small", prompt="the", **words.ENDLESS)
        next(iter(stream))
        stream.close()
        words.eventually(lambda: made.scheduler.load == (0, 0))
        assert made.scheduler.counters.cancelled == 1
        assert made.scheduler.counters.generated_tokens < words.ENDLESS["max_tokens"]
        assert client.completions.create(model="small", prompt="the", max_tokens=2).usage.completion_tokens == 2


def test_a_full_queue_is_refused(endless) -> None:
    """Past the limit a request is answered 429, and none is lost."""
    with serving(endless, parallel=1, queue=0, context=words.CONTEXT) as made, client_of(made) as client:
        stream = client.completions.create(model="small", prompt="the", **words.ENDLESS)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="wait already"):
            client.completions.create(model="small", prompt="the", max_tokens=2)
        stream.close()
        words.eventually(lambda: made.scheduler.load == (0, 0))
        assert (made.scheduler.counters.rejected, made.scheduler.counters.cancelled) == (1, 1)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "no JSON"),
        (b"[]", "no JSON object"),
        (b"[" * 100000, "no JSON"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "type text"),
        ({"messages": MESSAGES, "temperature": "hot"}, "temperature"),
        ({"messages": MESSAGES, "temperature": -1}, "temperature"),
        ({"messages": MESSAGES, "max_tokens": 1.5}, "max_tokens"),
        ({"messages": MESSAGES, "n": 2}, "'n' is not supported"),
        ({"messages": MESSAGES, "seed": -1}, "seed"),
        ({"messages": MESSAGES, "stop": [1]}, "stop"),
        ({"messages": MESSAGES, "stop": 7}, "wrong type"),
        ({"messages": [{"role": "user", "content": "fox " * 9000}]}, "context"),
    ],
)
def test_wrong_requests_are_answered_400(served, body, word) -> None:
    """Each with the protocol's error object; the server goes on."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(served.url + "/v1/chat/completions", data)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request)
    with raised.value as answer:
        assert answer.code == 400
        assert word in json.loads(answer.read())["error"]["message"]
    assert json.loads(get(served.url + "/health"))["status"] == "ok"


def test_a_huge_body_is_refused(served) -> None:
    """More than the limit is not kept in memory, also if all but its size is right."""
    body = json.dumps({"model": "small", "prompt": "the", "max_tokens": 1}).encode() + b" " * (5 << 20)
    request = urllib.request.Request(served.url + "/v1/completions", body)
    with pytest.raises((urllib.error.HTTPError, ConnectionError)) as raised:
        urllib.request.urlopen(request)
    if isinstance(raised.value, urllib.error.HTTPError):
        raised.value.close()


def test_health_and_metrics(served) -> None:
    """What monitors read."""
    with client_of(served) as client:
        client.completions.create(model="small", prompt="the quick", max_tokens=3)
    health = json.loads(get(served.url + "/health"))
    assert health == {"status": "ok", "model": "small", "running": 0, "waiting": 0}
    values = dict(line.split() for line in get(served.url + "/metrics").splitlines() if not line.startswith("#"))
    assert int(values["ternary_generated_tokens_total"]) == 3
    assert int(values["ternary_finished_total"]) == 1


def test_a_conversation_runs_only_its_new_tokens(served) -> None:
    """The second turn reuses the first one's keys and values."""
    with client_of(served) as client:
        first = client.chat.completions.create(model="small", messages=MESSAGES, max_tokens=4)
        turns = [*MESSAGES, {"role": "assistant", "content": first.choices[0].message.content}]
        turns.append({"role": "user", "content": "and the dog"})
        second = client.chat.completions.create(model="small", messages=turns, max_tokens=4)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1


def test_closing_ends_every_request(endless) -> None:
    """No request waits for ever, and none is taken afterwards."""
    scheduler = Scheduler(load(endless, threads=1, context=words.CONTEXT), parallel=1, queue=4)
    events = []
    for _ in range(3):
        limits = Sampling(max_tokens=words.ENDLESS["max_tokens"], temperature=1.5)
        scheduler.submit(Request([5, 6], limits, events.append))
    while scheduler.load != (1, 2) or scheduler.counters.generated_tokens < 2:
        time.sleep(0.01)
    scheduler.close()
    ends = [event.finish for event in events if event.finish is not None or event.error is not None]
    assert ends == ["cancelled"] * 3
    with pytest.raises(ServerBusyError):
        scheduler.submit(Request([5], Sampling(), events.append))
    del scheduler
    gc.collect()


def test_an_application_answers_and_closes_with_its_lifespan(path) -> None:
    """Any ASGI server runs `llm.application`; when it shuts down, the model and its thread end."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application(path, name="small", threads=1), log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        port = listening.getsockname()[1]
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
            answer = client.completions.create(model="small", prompt="the quick", max_tokens=5)
        assert answer.choices[0].text == load(path).generate("the quick", max_tokens=5).text()
        assert "ternary-scheduler" in [running.name for running in threading.enumerate()]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
    assert "ternary-scheduler" not in [running.name for running in threading.enumerate()]


def test_the_command(path) -> None:
    """`ternary serve` in a process of its own, and its end by Ctrl-C."""
    run = [sys.executable, "-m", "ternary", "serve", str(path), "--port", "0", "--threads", "1"]
    with subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            url = next(line.split()[-5] for line in process.stderr if "running on" in line)
            assert json.loads(get(f"{url}/health"))["status"] == "ok"
        finally:
            process.send_signal(2)
            process.communicate(timeout=200)
    assert process.returncode in (0, 130, -2)
