"""Decoding and prefill of a random Llama-like 2B model against llama.cpp (package `xllamacpp`), and the memory's limit.

Every figure comes from a process of its own; the contenders take turns, round by round.

    python benchmarks/language_models.py --folder /tmp/models --rounds 2 --json results-language-models.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import runpy
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
SHAPES: dict[str, dict[str, Any]] = {
    "2B": {"hidden": 2560, "inner": 6912, "layers": 30, "heads": 20, "kv_heads": 5, "head_size": 128},
    "0.5B": {"hidden": 1536, "inner": 4096, "layers": 16, "heads": 12, "kv_heads": 3, "head_size": 128},
}
VOCABULARY, PROMPT, DECODED = 32000, 512, 24


def tokenizer() -> bytes:
    """A byte-level tokenizer of the vocabulary's size."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    pieces += [f"t{i}" for i in range(VOCABULARY - len(pieces))]
    made = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, [("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made.to_str().encode()


def make(folder: Path, shape: str) -> tuple[Path, Path]:
    """Write the model file and the GGUF of a shape, unless they are there."""
    from ternary.llm import ModelConfig, to_gguf

    ours, theirs = folder / f"{shape}.ternary", folder / f"{shape}.gguf"
    if not ours.exists():
        random = runpy.run_path(str(HERE.parent / "tests" / "llm_random.py"))
        config = ModelConfig(VOCABULARY, context=2048, epsilon=1e-5, **SHAPES[shape])
        random["write_random"](config, ours, tokenizer=tokenizer())
    if not theirs.exists():
        to_gguf(ours, theirs)
    return ours, theirs


def prompt(count: int) -> list[int]:
    """Random tokens."""
    return [int(t) for t in np.random.default_rng(1).integers(300, VOCABULARY, count)]


def run_ours(path: Path, threads: int) -> dict[str, float]:
    """Prefill and decode with this library."""
    from ternary.llm import load

    begin = time.perf_counter()
    model = load(path, threads=threads, context=1024)
    opened = time.perf_counter() - begin
    list(model.generate([1, 2, 3], max_tokens=2).iterate_tokens())
    generation = model.generate(prompt(PROMPT), max_tokens=DECODED)
    begin = time.perf_counter()
    tokens = generation.iterate_tokens()
    next(tokens)
    first = time.perf_counter()
    count = sum(1 for _ in tokens)
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "prefill": PROMPT / (first - begin),
        "decode": count / (end - first),
        "open_seconds": opened,
        "peak_bytes": float(peak),
    }


def run_llama_cpp(path: Path, threads: int) -> dict[str, float]:
    """Prefill and decode with llama.cpp."""
    import xllamacpp

    given = xllamacpp.CommonParams()
    given.model.path = str(path)
    given.n_ctx, given.n_parallel, given.n_predict = 1024, 1, DECODED
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
    given.warmup = True
    server = xllamacpp.Server(given)
    options = {"n_predict": DECODED, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
    answer = server.handle_completions({"prompt": prompt(PROMPT), **options})
    timings = (json.loads(answer) if isinstance(answer, str) else answer)["timings"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "prefill": float(timings["prompt_per_second"]),
        "decode": float(timings["predicted_per_second"]),
        "peak_bytes": float(peak),
    }


def processor_time(who: str, path: Path) -> dict[str, float]:
    """Tokens per second of processor time of one thread, for a machine that others use: longer less shorter runs."""
    if who == "ternary":
        from ternary.llm import load

        model = load(path, threads=1, context=1024)

        def run(ids: list[int], count: int) -> None:
            with model.generate(ids, max_tokens=count) as generation:
                list(generation.iterate_tokens())

    else:
        import xllamacpp

        given = xllamacpp.CommonParams()
        given.model.path = str(path)
        given.n_ctx, given.n_parallel = 1024, 1
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
        server = xllamacpp.Server(given)

        def run(ids: list[int], count: int) -> None:
            options = {"n_predict": count, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
            server.handle_completions({"prompt": ids, **options})

    def took(length: int, count: int) -> float:
        ids = [int(t) for t in np.random.default_rng(length).integers(300, VOCABULARY, length)]
        begin = time.process_time()
        run(ids, count)
        return time.process_time() - begin

    beside = {"eight_sequences": steps_of(model, 8)} if who == "ternary" else {}
    took(4, 2)
    short, more, long = took(8, 1), took(9, 1 + DECODED), took(8 + 128, 1)
    return {"decode": DECODED / (more - short), "prefill": 128 / (long - short), **beside}


def steps_of(model: Any, sequences: int) -> float:
    """Tokens per second of processor time of so many sequences that run in the same steps, as the server runs them."""
    from ternary.llm._cache import Row

    caches = [model.engine.new_cache(128) for _ in range(sequences)]
    best = float("inf")
    for position in range(16):
        begin = time.process_time()
        model.engine.run([Row(300 + i, position, cache, True) for i, cache in enumerate(caches)])
        best = min(best, time.process_time() - begin)
    return sequences / best


def measure_processor_time(folder: Path, shape: str, rounds: int) -> None:
    """Print what one thread does in a second of processor time."""
    ours, theirs = make(folder, shape)
    program = reader(folder)
    read = ours.stat().st_size - VOCABULARY * SHAPES[shape]["hidden"]
    for _ in range(rounds):
        if program is not None:
            done = subprocess.run([program, ours, "1", "cpu"], capture_output=True, text=True, check=True)
            print(f"limit      decode {float(done.stdout) * 1e9 / read:7.1f}")
        for who, path in (("ternary", ours), ("llama.cpp", theirs)):
            found = child(who, path, 0)
            eight = f" eight sequences {found['eight_sequences']:7.1f}" if "eight_sequences" in found else ""
            print(f"{who:10} decode {found['decode']:7.1f} prefill of 128 {found['prefill']:7.1f}{eight}", flush=True)


def child(who: str, path: Path, threads: int) -> dict[str, float]:
    """Run a contender in a process of its own; the last line that it prints is its result."""
    run = [sys.executable, __file__, "--child", who, "--file", str(path), "--threads", str(threads)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{who} failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def reader(folder: Path) -> Path | None:
    """Compile the memory's reader, or None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    program = folder / "read_memory"
    flags = ["-O3", "-march=native", "-pthread"]
    subprocess.run([compiler, *flags, "-o", program, HERE / "read_memory.c"], check=True)
    return program


def first_token(path: Path) -> float:
    """Seconds from the start of the command to its first token, the file in the page cache."""
    begin = time.perf_counter()
    run = [sys.executable, "-m", "ternary", "generate", str(path), "ab", "--max-tokens", "1", "--context", "512"]
    subprocess.run(run, capture_output=True, check=True)
    return time.perf_counter() - begin


def measure(folder: Path, shape: str, rounds: int) -> dict[str, Any]:
    """Run all contenders in turn."""
    ours, theirs = make(folder, shape)
    program = reader(folder)
    # A token reads the file but the embedding, of which it reads one row.
    read = ours.stat().st_size - VOCABULARY * SHAPES[shape]["hidden"]
    samples: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)

    for _ in range(rounds):
        for threads in (1, 2):
            if program is not None:
                done = subprocess.run([program, ours, str(threads)], capture_output=True, text=True, check=True)
                note(f"limit/{threads}", float(done.stdout) * 1e9 / read)
            for who, path in (("ternary", ours), ("llama.cpp", theirs)):
                for name, value in child(who, path, threads).items():
                    note(f"{who}/{name}/{threads}", value)
        note("first_token_seconds", first_token(ours))
    made = {name: statistics.median(values) for name, values in samples.items()}
    return {"shape": shape, "file_bytes": ours.stat().st_size, "read_bytes": read, "median": made, "samples": samples}


def show(row: dict[str, Any]) -> None:
    """Print the table of one shape."""
    found = row["median"]
    print(f"{row['shape']}: file {row['file_bytes'] / 1e6:.0f} MB, a token reads {row['read_bytes'] / 1e6:.0f} MB")
    print(f"{'tokens/s':24} {'ternary':>9} {'llama.cpp':>10} {'ratio':>6} {'limit':>7} {'share':>6}")
    for threads in (1, 2):
        for what in ("decode", "prefill"):
            ours, theirs = found[f"ternary/{what}/{threads}"], found[f"llama.cpp/{what}/{threads}"]
            limit = found.get(f"limit/{threads}") if what == "decode" else None
            share = f"{limit:7.1f} {ours / limit:6.2f}" if limit else ""
            print(f"{what + f', {threads} thread(s)':24} {ours:9.1f} {theirs:10.1f} {ours / theirs:6.2f} {share}")
    print(f"first token {found['first_token_seconds']:.2f} s, opened in {1e3 * found['ternary/open_seconds/1']:.1f} ms")
    peak, cache = found["ternary/peak_bytes/1"], found["llama.cpp/peak_bytes/1"]
    print(f"peak memory: ternary {peak / 1e6:.0f} MB, llama.cpp {cache / 1e6:.0f} MB")


def main() -> None:
    """Measure, or be a contender's process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/ternary-models"), help="where the models are kept")
    parser.add_argument("--shape", choices=SHAPES, default="2B")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: one thread's processor time, on a busy machine"
    )
    parser.add_argument("--make", action="store_true", help="only write the models")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--child", choices=("ternary", "llama.cpp"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run = run_ours if args.child == "ternary" else run_llama_cpp
        found = run(args.file, args.threads) if args.threads else processor_time(args.child, args.file)
        print("\n" + json.dumps(found), flush=True)
        os._exit(0)  # the peer's server has threads of its own
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.make:
        make(args.folder, args.shape)
        return
    if args.clock == "cpu":
        measure_processor_time(args.folder, args.shape, args.rounds)
        return
    row = measure(args.folder, args.shape, args.rounds)
    show(row)
    if args.json:
        args.json.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
