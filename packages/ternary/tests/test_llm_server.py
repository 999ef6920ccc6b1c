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

from ternary.errors import ModelClosedError, ServerBusyError
from ternary.llm import Sampling, application, convert, load
from ternary.llm import _connections as connections
from ternary.llm import _server as server_module
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
    config = connections.configuration(application(versions), log_level="error", lifespan="off")
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
        ({"messages": MESSAGES, "stop": {"a": 1}}, "wrong type"),
        ({"messages": MESSAGES, "stop": ["a"] * 17}, "up to 16 texts"),
        ({"messages": MESSAGES, "n": 0}, "'n' is not supported"),
        ({"messages": MESSAGES, "n": True}, "'n' is not supported"),
        ({"messages": MESSAGES, "logprobs": True}, "'logprobs' is not supported"),
        ({"messages": MESSAGES, "frequency_penalty": 0.5}, "'frequency_penalty' is not supported"),
        ({"messages": MESSAGES, "response_format": {"type": "json_object"}}, "'response_format' is not supported"),
        ({"messages": MESSAGES, "repetition_penalty": 1e-40}, "repetition_penalty"),
        ({"messages": MESSAGES, "stream": "false"}, "wanted a bool"),
        ({"messages": MESSAGES, "stream": True, "stream_options": "x"}, "wanted a dict"),
        ({"messages": MESSAGES, "temperature": "\ud800" * 9000}, "temperature"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "not Unicode"),
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


@pytest.mark.parametrize(("tokens", "word"), [([10**30], "vocabulary"), ([-1], "vocabulary"), ([1] * 2048, "context")])
def test_tokens_that_are_no_prompt_are_answered_400(served, tokens, word) -> None:
    """They are found before the request is queued, and the longest prompt leaves room for one token."""
    with client_of(served) as client:
        with pytest.raises(openai.BadRequestError, match=word):
            client.completions.create(model="small", prompt=tokens)
        with pytest.raises(openai.BadRequestError, match=word):
            client.completions.create(model="small", prompt=tokens, stream=True)
    assert served.scheduler.counters.requests == 0


def test_what_asks_for_nothing_is_taken(served) -> None:
    """Clients send defaults along; a limit that is null leaves the other one its word."""
    defaults = {"n": 1, "logprobs": None, "frequency_penalty": 0, "presence_penalty": 0.0, "stop": None, "tools": []}
    extra = {
        "max_completion_tokens": None,
        "top_k": 10**18,
        "response_format": {"type": "text"},
        "stream_options": None,
    }
    with client_of(served) as client:

        def ask(count):
            answer = client.chat.completions.create(
                model="small", messages=MESSAGES, max_tokens=count, temperature=1e-320, extra_body=extra, **defaults
            )
            return answer.usage.completion_tokens, answer.choices[0].finish_reason

        assert (ask(0), ask(2)) == ((0, "length"), (2, "length"))


@pytest.mark.parametrize(
    ("begin", "answer"),
    [
        (b"", b""),
        (b"POST /v1/completions HTTP/1.1\r\nhost:", b""),
        (b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n{", b"HTTP/1.1 408 "),
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_clients_that_fall_silent_are_let_go(served, monkeypatch, begin, answer) -> None:
    """Connections without a whole request end, however many there are."""
    monkeypatch.setattr(connections, "PATIENCE", 0.05)
    monkeypatch.setattr(server_module, "BODY_SECONDS", 0.05)
    address = ("127.0.0.1", int(served.url.rpartition(":")[2]))
    with contextlib.ExitStack() as opened:
        held = [opened.enter_context(socket.create_connection(address)) for _ in range(100)]
        for connection in held:
            connection.settimeout(200)
            connection.sendall(begin)
        for connection in held:
            said = b""
            while part := connection.recv(4096):
                said += part
            assert said.startswith(answer)
    assert json.loads(get(served.url + "/health"))["status"] == "ok"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS holds on Linux")
def test_no_memory_for_one_more_text_is_an_answer(tmp_path) -> None:
    """A request for which there is no memory ends with an error; one that can have another's memory is answered."""
    text = """if True:
        import queue, re, resource, sys
        import numpy.random
        from ternary.llm import Sampling, load
        from ternary.llm._batching import Request, Scheduler
        scheduler, events = Scheduler(load(sys.argv[1], threads=1, context=1 << 19), parallel=2), queue.Queue()
        size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        for limit, prompt in ((size + (16 << 20), [5, 6]), (most, [5, 6]), (size + (16 << 20), [7, 8])):
            resource.setrlimit(resource.RLIMIT_AS, (limit, most))
            scheduler.submit(Request(prompt, Sampling(max_tokens=1), events.put))
            while (event := events.get()).error is None and event.finish is None:
                pass
            print(event.finish or type(event.error).__name__)
        scheduler.close()
    """
    file = words.save_words(tmp_path / "long.ternary", context=1 << 19)
    run = [sys.executable, "-c", text, str(file)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout.split() == ["ModelTooLargeError", "length", "length"]


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


def test_a_second_lifespan_is_refused(path) -> None:
    """An application whose model is closed says so when it starts, and not to every request."""
    app = application(path, threads=1)

    async def live():
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(live())
    with pytest.raises(ModelClosedError, match="make another one"):
        asyncio.run(live())


def test_the_command(endless) -> None:
    """`ternary serve` in a process of its own; Ctrl-C ends it and the stream of a client that would go on."""
    run = [sys.executable, "-m", "ternary", "serve", str(endless), "--port", "0", "--threads", "1"]
    run += ["--context", str(words.CONTEXT)]
    with subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            url = next(line.split()[-5] for line in process.stderr if "running on" in line)
            assert json.loads(get(f"{url}/health"))["status"] == "ok"
            with client_of(SimpleNamespace(url=url)) as client:
                pieces = iter(client.completions.create(model="small", prompt="the", **words.ENDLESS))
                next(pieces)
                process.send_signal(2)
                with contextlib.suppress(Exception):
                    for _ in pieces:
                        pass
        finally:
            process.send_signal(2)
            process.communicate(timeout=200)
    assert process.returncode in (0, 130, -2)
