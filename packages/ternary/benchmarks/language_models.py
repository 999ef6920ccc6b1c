"""Decoding and prefill of a random Llama-like 2B model against llama.cpp (package `xllamacpp`), and the memory's limit.

Every figure comes from a process of its own; the contenders take turns, round by round.

    python benchmarks/language_models.py --folder /tmp/models --rounds 2 --json results-language-models.json
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import measure as measures
import onnx_decoder

HERE = Path(__file__).parent
SHAPES: dict[str, dict[str, Any]] = {
    "2B": {"hidden": 2560, "inner": 6912, "layers": 30, "heads": 20, "kv_heads": 5, "head_size": 128},
    "0.5B": {"hidden": 1536, "inner": 4096, "layers": 16, "heads": 12, "kv_heads": 3, "head_size": 128},
}
CONTENDERS = ("ternary", "llama.cpp", "llama.cpp TQ1_0", "onnxruntime", "transformers")
KINDS_OF_TIME = {0: "processor time of 1 thread", 1: "1 thread", 2: "2 threads"}
VOCABULARY, PROMPT, DECODED = 32000, 512, 24


def tokenizer(vocabulary: int = VOCABULARY) -> bytes:
    """A byte-level tokenizer of a vocabulary's size."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    pieces += [f"t{i}" for i in range(vocabulary - len(pieces))]
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


def peak_memory() -> int:
    """Bytes that this process had in memory at most. `getrusage` would count what its parent had before it started."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def run_ours(path: Path, threads: int) -> dict[str, float]:
    """Prefill and decode with this library; with 0 threads one thread by its processor time, for a busy machine."""
    from ternary.llm import load
    from ternary.llm._cache import bytes_a_position

    clock, length = (time.perf_counter, PROMPT) if threads else (time.thread_time, 128)
    begin, before = time.perf_counter(), peak_memory()
    model = load(path, threads=threads or 1, context=1024)
    opened = time.perf_counter() - begin
    list(model.generate([1, 2, 3], max_tokens=2).iterate_tokens())
    generation = model.generate(prompt(length), max_tokens=DECODED)
    begin = clock()
    tokens = generation.iterate_tokens()
    next(tokens)
    prefill = clock() - begin
    peak = peak_memory()
    found = in_turns(model, tokens, length, threads or 1, clock)
    if threads:
        found["outside_products"] = 1 - products_of(model, threads) * found["one"]
    return {
        "prefill": length / prefill,
        "open_seconds": opened,
        "peak_bytes": float(peak),
        "cache_bytes": float(bytes_a_position(model.config, 16) * (length + DECODED)),
        "before_bytes": float(before),
        **found,
    }


def in_turns(model: Any, tokens: Any, length: int, threads: int, clock: Callable[[], float]) -> dict[str, float]:
    """Tokens per second of one text, of one and of eight sequences in a step, and of reading the bytes of a token.

    The text has `length` tokens; the bytes of its next one are the weights, the head, and the keys and values of all
    before it. The sequences of the other two begin.

    They take turns token by token, so that what else the machine does meets all of them alike; medians count.
    """
    from ternary.llm._cache import Row

    caches = [model.engine.new_cache(128) for _ in range(9)]
    read = reader(
        [tensor for name, tensor in model._file.tensors.items() if name != "embedding"]
        + cache_memory(model.config, length)
    )
    took: dict[str, list[float]] = {"limit": [], "decode": [], "one": [], "eight": []}

    def step(position: int, sequences: list[Any]) -> None:
        model.engine.run([Row(300 + i, position, cache, True) for i, cache in enumerate(sequences)])

    for position in range(DECODED - 1):
        work: dict[str, Callable[[], Any]] = {
            "limit": lambda: read(threads) if read else None,
            "decode": lambda: next(tokens),
            "one": lambda at=position: step(at, caches[8:]),
            "eight": lambda at=position: step(at, caches[:8]),
        }
        for name, run in work.items():
            begin = clock()
            run()
            took[name].append(clock() - begin)
    found = {name: (8 if name == "eight" else 1) / statistics.median(values) for name, values in took.items()}
    if read is None:
        del found["limit"]
    return found


def products_of(model: Any, threads: int) -> float:
    """Seconds that the packed products of one token and the head take when they are called one after another."""
    from ternary import _core
    from ternary.llm._cache import Row

    config, file, path = model.config, model._file, _core.path_number("auto")
    x, y = np.ones(config.inner, np.float32), np.empty(config.inner, np.float32)
    library, one = _core.core().library, (1, 1, 1, 1, 0, 0, 1, 1)
    problems = []
    for _, matrix in file.matrices():
        at = (x.ctypes.data, matrix.tiles.ctypes.data, matrix.scale.ctypes.data, 0, y.ctypes.data, 0, 2)
        problems.append(_core.PROBLEM.pack(path, threads, 1, 1, 1, matrix.inputs, matrix.outputs, 1, *one, *at))
    best = float("inf")
    for _ in range(6):
        begin = time.perf_counter()
        for problem in problems:
            library.ternary_run(problem)
        best = min(best, time.perf_counter() - begin)
    cache, head = model.engine.new_cache(16), []
    for wanted in (False, True) * 6:
        begin = time.perf_counter()
        model.engine.run([Row(300, 0, cache, wanted)])
        head.append(time.perf_counter() - begin)
    return best + min(head[1::2]) - min(head[::2])


def run_transformers(path: Path, threads: int) -> dict[str, float]:
    """Decode with the packed BitNet layers of transformers."""
    import torch
    import transformers

    torch.set_num_threads(threads or 1)
    clock = time.perf_counter if threads else time.process_time
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    ids = torch.tensor([prompt(1)])
    with torch.inference_mode():
        known = model(ids, use_cache=True)
        begin = clock()
        model(ids, past_key_values=known.past_key_values, use_cache=True)
        end = clock()
    return {"decode": 1 / (end - begin)}


def run_onnxruntime(path: Path, threads: int) -> dict[str, float]:
    """Prefill and decode with onnxruntime's 2-bit products, of random codes."""
    if threads:
        return onnx_decoder.run(path, threads, PROMPT, DECODED, time.perf_counter)
    return onnx_decoder.run(path, 1, 128, DECODED, time.process_time)


def packed_folder(ours: Path, folder: Path) -> Path:
    """Write a model file as a Hugging Face folder with packed uint8 weights, unless it is there."""
    import torch
    from safetensors.torch import save_file

    from ternary.llm._modelfile import open_file

    made = folder / f"{ours.stem}-packed"
    if (made / "config.json").exists():
        return made
    made.mkdir(exist_ok=True)
    file = open_file(ours)
    config, state = file.config, {}
    names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
    names |= {part: f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    for name, matrix in file.matrices():
        _, layer, part = name.split(".")
        quarter = (matrix.values() + 1).astype(np.uint8).reshape(4, -1, matrix.inputs)
        codes = quarter[0] | quarter[1] << 2 | quarter[2] << 4 | quarter[3] << 6
        full = f"model.layers.{layer}.{names[part]}.weight"
        state[full] = torch.from_numpy(codes)
        state[full + "_scale"] = torch.tensor([1 / float(matrix.scale[0])], dtype=torch.bfloat16)
    for layer in range(config.layers):
        at = f"model.layers.{layer}."
        for ours_name, theirs in (("attention", "input"), ("feed", "post_attention")):
            norm = file.tensors[f"layers.{layer}.{ours_name}_norm"]
            state[f"{at}{theirs}_layernorm.weight"] = torch.tensor(norm).bfloat16()
    state["model.norm.weight"] = torch.tensor(file.tensors["norm"]).bfloat16()
    for ours_name, theirs in (("embedding", "model.embed_tokens"), ("head", "lm_head")):
        rows = file.tensors[ours_name].astype(np.float32) * file.tensors[ours_name + ".scale"][:, None]
        state[theirs + ".weight"] = torch.from_numpy(rows).bfloat16()
    save_file(state, made / "model.safetensors", metadata={"format": "pt"})
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden,
        "intermediate_size": config.inner,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.context,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "bitlinear",
            "quantization_mode": "offline",
            "modules_to_not_convert": ["lm_head"],
        },
    }
    (made / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return made


def one_in_three(theirs: Path) -> Path:
    """Write the GGUF with TQ1_0 in place of TQ2_0, five weights a byte, unless it is there."""
    import gguf

    made = theirs.with_name(theirs.stem + "-tq1.gguf")
    if made.exists():
        return made
    reader = gguf.GGUFReader(theirs)
    writer = gguf.GGUFWriter(str(made), "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.TQ2_0:
            kind = gguf.GGMLQuantizationType.TQ1_0
            data = gguf.quants.quantize(gguf.quants.dequantize(tensor.data, tensor.tensor_type), kind)
        else:
            kind, data = tensor.tensor_type, tensor.data
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


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
    peak = peak_memory()
    return {
        "prefill": float(timings["prompt_per_second"]),
        "decode": float(timings["predicted_per_second"]),
        "peak_bytes": float(peak),
    }


def processor_time(path: Path) -> dict[str, float]:
    """Tokens per second of processor time of llama.cpp, one thread, for a busy machine: longer less shorter runs."""
    import xllamacpp

    given = xllamacpp.CommonParams()
    given.model.path = str(path)
    given.n_ctx, given.n_parallel = 1024, 1
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(given)

    def took(length: int, count: int) -> float:
        ids = [int(t) for t in np.random.default_rng(length).integers(300, VOCABULARY, length)]
        options = {"n_predict": count, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        begin = time.process_time()
        server.handle_completions({"prompt": ids, **options})
        return time.process_time() - begin

    took(4, 2)
    short, more, long = took(8, 1), took(9, 1 + DECODED), took(8 + 128, 1)
    return {"decode": DECODED / (more - short), "prefill": 128 / (long - short)}


def child(who: str, path: Path, threads: int) -> dict[str, float]:
    """Run a contender in a process of its own; the last line that it prints is its result."""
    run = [sys.executable, __file__, "--child", who, "--file", str(path), "--threads", str(threads)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{who} failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def cache_memory(config: Any, length: int) -> list[Any]:
    """Memory that stands for the keys and values of a text, one piece for each layer and head, on cache lines."""
    from ternary.llm._cache import bytes_a_position

    pairs = config.layers * config.kv_heads
    each = length * bytes_a_position(config, 16) // pairs
    rows = np.ones((pairs, -(-each // 64) * 64 + 64), np.uint8)
    return [row[-row.ctypes.data % 64 :][:each] for row in rows]


def reader(parts: list[Any]) -> Callable[[int], Any] | None:
    """Compile the reader of memory; return a call that reads all parts with some threads, None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "read_memory.so"
        flags = ["-O3", "-march=native", "-pthread", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", program, HERE / "read_memory.c"], check=True)
        read = ctypes.CDLL(str(program)).read_memory
    read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    at, size = np.array([[part.ctypes.data, part.nbytes] for part in parts], np.uint64).T.copy()

    def read_all(threads: int) -> None:
        read(at.ctypes.data, size.ctypes.data, len(parts), threads)

    return read_all


def first_token(path: Path) -> float:
    """Seconds from the start of the command to its first token, the file in the page cache."""
    begin = time.perf_counter()
    run = [sys.executable, "-m", "ternary", "generate", str(path), "ab", "--max-tokens", "1", "--context", "512"]
    subprocess.run(run, capture_output=True, check=True)
    return time.perf_counter() - begin


def contenders_of(folder: Path, shape: str, names: list[str]) -> dict[str, Path]:
    """Return the file of each contender, made if it is not there."""
    ours, theirs = make(folder, shape)
    files: dict[str, Callable[[], Path]] = {
        "ternary": lambda: ours,
        "llama.cpp": lambda: theirs,
        "llama.cpp TQ1_0": lambda: one_in_three(theirs),
        "onnxruntime": lambda: onnx_decoder.write(SHAPES[shape], VOCABULARY, folder / f"{shape}.onnx"),
        "transformers": lambda: packed_folder(ours, folder),
    }
    return {name: files[name]() for name in names}


def measure(folder: Path, shape: str, rounds: int, names: list[str], counts: list[int]) -> dict[str, Any]:
    """Run all contenders in turn."""
    files = contenders_of(folder, shape, names)
    ours = files["ternary"]
    # A token reads the file but the embedding, of which it reads one row.
    read = ours.stat().st_size - VOCABULARY * SHAPES[shape]["hidden"]
    samples: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)
        print(f"{name:40} {value:12.4g}", flush=True)

    for _ in range(rounds):
        for threads in counts:
            for who, path in files.items():
                for name, value in child(who, path, threads).items():
                    note(f"{name}/{threads}" if name == "limit" else f"{who}/{name}/{threads}", value)
        if 1 in counts:
            note("first_token_seconds", first_token(ours))
    made = {name: statistics.median(values) for name, values in samples.items()}
    return {"shape": shape, "file_bytes": ours.stat().st_size, "read_bytes": read, "median": made, "samples": samples}


def rows_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows for the published benchmarks."""
    found, shape, samples = row["median"], row["shape"], row["samples"]
    made = []

    def add(metric: str, key: str, peer: str | None, peer_key: str, target: float | None) -> None:
        if key in found and (peer is None or peer_key in found):
            other = found.get(peer_key) if peer else None
            made.append(
                measures.row(metric, "tokens/s", found[key], peer, other, target, "higher", samples=samples[key])
            )

    for threads, many in KINDS_OF_TIME.items():
        decode, prefill = f"ternary/decode/{threads}", f"ternary/prefill/{threads}"
        at = f"language model {shape}, {{}}, {many}"
        add(at.format("decode"), decode, "reading the bytes", f"limit/{threads}", 0.75)
        for peer in CONTENDERS[1:]:
            shown, target = shown_name(peer), {"llama.cpp": 1.7, "transformers": 10.0}.get(peer)
            add(at.format("decode"), decode, shown, f"{peer}/decode/{threads}", target)
            add(
                at.format(f"prefill of {PROMPT if threads else 128}"),
                prefill,
                shown,
                f"{peer}/prefill/{threads}",
                3.0 if target else None,
            )
        add(at.format("8 requests at once"), f"ternary/eight/{threads}", "one request", f"ternary/one/{threads}", 3.0)
    return made


def shown_name(who: str) -> str:
    """Return what a contender is called in tables and pictures."""
    names = {"limit": "reading the bytes", "llama.cpp": "llama.cpp TQ2_0", "transformers": "transformers, packed"}
    return (names | {"onnxruntime": "onnxruntime, 2 bits"}).get(who, who)


def picture(rows: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw tokens per second by threads, beside the peers and the limit."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(5.5 * len(rows), 3.8), squeeze=False)
    colours = {"limit": "#bbbbbb", "ternary": "#2a7f62", "llama.cpp": "#b5483a", "llama.cpp TQ1_0": "#d08a5a"}
    for axis, row in zip(axes.flat, rows.values(), strict=True):
        found = row["median"]
        keys = {"limit": "limit/{}"} | {who: who + "/decode/{}" for who in CONTENDERS}
        times = [threads for threads in KINDS_OF_TIME if f"ternary/decode/{threads}" in found]
        keys = {who: key for who, key in keys.items() if any(key.format(threads) in found for threads in times)}
        for at, (who, key) in enumerate(keys.items()):
            known = [(place, found[key.format(n)]) for place, n in enumerate(times) if key.format(n) in found]
            places = [place + (at - len(keys) / 2 + 0.5) * 0.17 for place, _ in known]
            values = [value for _, value in known]
            bars = axis.bar(places, values, 0.16, label=shown_name(who), color=colours.get(who, "#5a6bd0"))
            axis.bar_label(bars, fmt="%.3g", fontsize=7)
        axis.set_xticks(range(len(times)), [KINDS_OF_TIME[threads] for threads in times])
        axis.set_title(f"{row['shape']}: decoding one text, tokens/s")
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def publish(new: dict[str, Any]) -> None:
    """Merge a run into the published file, and draw and print what it now holds."""
    file = HERE / "language_models.json"
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"shapes": {}}
    known["machine"], known["versions"] = measures.machine(), measures.versions()
    merged = known["shapes"].setdefault(new["shape"], new)
    merged["samples"] |= new["samples"]
    merged["median"] |= new["median"]
    known["rows"] = [made for shape in known["shapes"].values() for made in rows_of(shape)]
    file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    picture(known["shapes"], file.with_suffix(".png"))


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
    parser.add_argument("--publish", action="store_true", help="merge the run into language_models.json, and draw it")
    parser.add_argument("--count", type=int, action="append", choices=(1, 2), help="how many threads; again for more")
    parser.add_argument("--against", action="append", choices=CONTENDERS, help="who takes part; again for more")
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        others = {"ternary": run_ours, "transformers": run_transformers, "onnxruntime": run_onnxruntime}
        run = others.get(args.child, run_llama_cpp)
        busy = not args.threads and args.child.startswith("llama.cpp")
        found = processor_time(args.file) if busy else run(args.file, args.threads)
        print("\n" + json.dumps(found), flush=True)
        os._exit(0)  # the peer's server has threads of its own
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.make:
        contenders_of(args.folder, args.shape, args.against or ["ternary", "llama.cpp"])
        return
    names = args.against or ["ternary", "llama.cpp"]
    row = measure(args.folder, args.shape, args.rounds, names, [0] if args.clock == "cpu" else args.count or [1, 2])
    if args.publish:
        publish(row)
    if args.json:
        args.json.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
