"""Thirty networks of other libraries, random weights: quantized, packed, saved, loaded, exported and timed.

    python benchmarks/models.py [--only NAME …] [--quick] [--clock cpu] [--publish]

Each network runs in a process of its own, forked where the libraries are imported already, on one thread. `--publish`
merges the run into models.json and writes the table docs/networks.md from it; `--quick --publish` takes some five
minutes on a machine that does nothing else. `python benchmarks/bench.py --only models` runs all of them as rows of the
benchmark.

Networks of torchvision and timm need `pip install --no-deps --target FOLDER torchvision timm` and PYTHONPATH=FOLDER. A
network whose library is missing is a row without a value.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, machine, row, versions
from torch import Tensor, nn

import ternary
from ternary.export import FORMATS, export
from ternary.runtime import fuse

Row = dict[str, Any]
Clock = Callable[[], float]
HERE = Path(__file__).parent
PUBLISHED, PAGE = HERE / "models.json", HERE.parent / "docs" / "networks.md"

TORCHVISION = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x1_0"),
    *("squeezenet1_1", "regnet_y_400mf", "vit_b_16", "swin_t"),
)
TIMM = (
    *("mobilenetv3_small_100", "efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224", "deit_tiny_patch16_224"),
    *("mixer_s32_224", "resnet26", "repvgg_a0", "ghostnet_100", "mobilenetv2_100"),
)
_LIBRARY: list[Any] = []


def _torchvision() -> Any:
    """Import torchvision beside any torch: no network here uses its compiled operators, which may belong to another."""
    if not _LIBRARY:
        library = torch.library.Library("torchvision", "FRAGMENT")
        kinds = ("deform_conv2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
        for name in ("nms", "qnms", "qroi_align", *kinds, *(f"_{kind}_backward" for kind in kinds)):
            with suppress(RuntimeError):  # it is there
                library.define(f"{name}(Tensor x) -> Tensor")
        _LIBRARY.append(library)
    import torchvision

    return torchvision


def _pictures(library: str, name: str) -> tuple[nn.Module, dict[str, Any] | Tensor]:
    """A network for pictures of 224 x 224."""
    torchvision = _torchvision()
    if library == "torchvision":
        return getattr(torchvision.models, name)(weights=None), torch.randn(1, 3, 224, 224)
    import timm

    return timm.create_model(name, pretrained=False), torch.randn(1, 3, 224, 224)


def _language(name: str) -> tuple[nn.Module, dict[str, Any] | Tensor]:
    """A small network of transformers, two or four layers of width 256."""
    with suppress(ImportError):  # transformers imports it where it is there
        _torchvision()
    import transformers as t

    width = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    text = {"vocab_size": 4000, **width}
    grouped = {**text, "num_key_value_heads": 2, "max_position_embeddings": 256}
    special = {"bos_token_id": 1, "eos_token_id": 2}
    sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 1024))}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    started = {**special, "pad_token_id": 0, "decoder_start_token_id": 1}
    heard = {"d_model": 256, "max_source_positions": 100, "max_target_positions": 64, **sides, **heads, **started}
    windows = {"patch_size": 4, "embed_dim": 64, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "gpt2": (
            t.GPT2LMHeadModel,
            t.GPT2Config,
            {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 4000, **special},
        ),
        "bert": (t.BertModel, t.BertConfig, text),
        "llama": (t.LlamaForCausalLM, t.LlamaConfig, grouped),
        "qwen2": (t.Qwen2ForCausalLM, t.Qwen2Config, grouped),
        "mixtral": (t.MixtralForCausalLM, t.MixtralConfig, {**grouped, "num_local_experts": 4}),
        "mamba": (t.MambaForCausalLM, t.MambaConfig, {"vocab_size": 4000, "hidden_size": 256, "num_hidden_layers": 2}),
        "t5": (
            t.T5ForConditionalGeneration,
            t.T5Config,
            {"vocab_size": 4000, "d_model": 256, "d_ff": 1024, "num_layers": 4},
        ),
        "whisper": (t.WhisperForConditionalGeneration, t.WhisperConfig, {"vocab_size": 4000, **heard}),
        "swin": (t.SwinModel, t.SwinConfig, {"image_size": 64, **windows}),
        "vit": (t.ViTModel, t.ViTConfig, {"image_size": 64, "patch_size": 8, **width}),
    }
    model, config, options = kinds[name]
    made = model(config(**options))
    tokens = torch.randint(10, 4000, (1, 64))
    if name in ("swin", "vit"):
        return made, {"pixel_values": torch.randn(1, 3, 64, 64)}
    if name == "whisper":
        return made, {"input_features": torch.randn(1, 80, 200), "decoder_input_ids": tokens[:, :16]}
    if name == "t5":
        return made, {"input_ids": tokens, "decoder_input_ids": tokens[:, :16]}
    return made, {"input_ids": tokens[:, :32] if name == "mamba" else tokens}


LANGUAGE = ("gpt2", "bert", "llama", "qwen2", "t5", "whisper", "mamba", "mixtral", "swin", "vit")
NETWORKS = {
    **{f"torchvision {n}": lambda n=n: _pictures("torchvision", n) for n in TORCHVISION},
    **{f"timm {n}": lambda n=n: _pictures("timm", n) for n in TIMM},
    **{f"transformers {n}": lambda n=n: _language(n) for n in LANGUAGE},
}


def _answer(model: nn.Module, given: dict[str, Any] | Tensor) -> Tensor:
    """The main tensor of a network's result."""
    result = model(**given) if isinstance(given, dict) else model(given)
    if isinstance(result, Tensor):
        return result
    return result["logits"] if "logits" in result else next(v for v in result.values() if isinstance(v, Tensor))


def _reloads(quantized: nn.Module, given: dict[str, Any] | Tensor, folder: Path) -> bool:
    """Whether a model from its file computes the same."""
    ternary.save(quantized, folder / "model.safetensors")
    fresh = copy.deepcopy(quantized)
    for parameter in fresh.parameters():
        parameter.data.normal_()
    again = ternary.load(folder / "model.safetensors", fresh)
    return torch.allclose(_answer(again, given), _answer(quantized, given), atol=1e-4, rtol=1e-4)


def _exports(quantized: nn.Module, given: dict[str, Any] | Tensor, folder: Path, formats: tuple[str, ...]) -> list[str]:
    """The formats that fail, each with its reason in a line."""
    example = tuple(given.values()) if isinstance(given, dict) else given[..., :96, :96] if given.dim() == 4 else given
    failed = []
    for kind in formats:
        try:
            export(quantized, folder / kind, [kind], example=example)
        except Exception as error:
            failed.append(f"{kind}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
    return failed


def one(name: str, quick: bool, clock: Clock) -> tuple[list[Row], list[str]]:
    """The rows of one network, and the formats that it could not be written to, with reasons."""
    metric = f"{name}, batch 1"
    try:
        torch.manual_seed(0)
        model, given = NETWORKS[name]()
    except ImportError:
        return [row(metric, "ms", None, "torch fp32", None, 1.0)], []
    model.eval()
    # Pictures of noise would leave nothing of the statistics of batch normalization: those networks are not calibrated.
    quantized, report = ternary.quantize(model, calibration=[given] if isinstance(given, dict) else None)
    packed = ternary.pack(quantized)
    runs: dict[str, Any] = {"torch fp32": lambda: _answer(model, given), "packed": lambda: _answer(packed, given)}
    runs["quantized"] = lambda: _answer(quantized, given)
    with suppress(ternary.TernaryError):
        if isinstance(given, Tensor):
            fused = fuse(packed, given)
            runs["fused"] = lambda: _answer(fused, given)
    timings = interleaved(runs, 1.5 if quick else 4, 3 if quick else 7, clock)
    best = "fused" if "fused" in runs else "packed"
    formats = ("safetensors", "base3", "gguf") if quick else tuple(FORMATS)
    with tempfile.TemporaryDirectory() as folder:
        equal = _reloads(quantized, given, Path(folder))
        failed = _exports(quantized, given, Path(folder), formats)
    found = [row(f"{name}: reloads equal", "of 1", int(equal), target=1.0, better="higher")]
    found.append(row(f"{name}: formats written", f"of {len(formats)}", len(formats) - len(failed), better="higher"))
    found.append(row(f"{name}: whole model", "bytes", report.bytes_after, "fp32", report.bytes_before))
    for contender in dict.fromkeys((best, "packed", "quantized")):
        judged = 1.0 if contender == best else None
        label = metric if contender == best else f"{metric}, {contender}"
        took, plain = timings.median(contender), timings.median("torch fp32")
        found.append(row(label, "ms", took, "torch fp32", plain, judged, samples=timings.samples[contender]))
    return found, failed


def measure(name: str, quick: bool, clock: Clock) -> dict[str, Any]:
    """Run one network on one thread."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with torch.inference_mode(False), torch.no_grad():
        found, failed = one(name, quick, clock)
    kind = "processor time" if clock is time.thread_time else "wall time"
    return {"name": name, "how": f"{'short' if quick else 'full'} runs, {kind}", "rows": found, "failed": failed}


def preload(names: list[str]) -> None:
    """Import what the networks of these names come from: seconds each, which every process of its own would take."""
    with suppress(ImportError):
        _torchvision()
    with suppress(ImportError):
        if any(name.startswith("timm") for name in names):
            importlib.import_module("timm")
    with suppress(ImportError):
        if any(name.startswith("transformers") for name in names):
            _ = importlib.import_module("transformers").PreTrainedModel  # of its lazy names the one that imports most


def forked(name: str, quick: bool, clock: Clock) -> dict[str, Any] | None:
    """Measure one network in a process of its own; None if that failed, which it has printed."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def answer(to: Connection) -> None:
        to.send(measure(name, quick, clock))

    child = context.Process(target=answer, args=(sender,))
    child.start()
    sender.close()
    try:
        network: dict[str, Any] | None = receiver.recv()
    except EOFError:
        network = None
    child.join()
    return network


def rows(quick: bool, clock: Clock = time.perf_counter) -> list[Row]:
    """All networks, one after the other in this process, and the median of their ratios."""
    found: list[Row] = []
    for name in NETWORKS:
        network = measure(name, quick, clock)
        found += network["rows"]
        for line in network["failed"]:
            print(f"{name}: {line}")
    return [*found, summary(found)]


def summary(found: list[Row]) -> Row:
    """The median of all networks' times over torch's."""
    ratios = [r["ratio"] for r in found if r["target"] and r["ratio"] and r["unit"] == "ms"]
    middle = statistics.median(ratios) if ratios else None
    return row("thirty networks: median of packed over torch fp32", "ratio", middle, target=0.6, samples=ratios)


def publish(networks: list[dict[str, Any]]) -> None:
    """Merge a run into the published file, and write the table of what it now holds."""
    known = json.loads(PUBLISHED.read_text(encoding="utf-8")) if PUBLISHED.exists() else {"networks": {}}
    known["machine"], known["versions"] = machine(), versions()
    known["networks"] |= {network["name"]: network for network in networks}
    known["networks"] = {name: known["networks"][name] for name in NETWORKS if name in known["networks"]}
    PUBLISHED.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(known), encoding="utf-8")


def page(known: dict[str, Any]) -> str:
    """The table in Markdown."""
    networks = list(known["networks"].values())
    middle = summary([r for network in networks for r in network["rows"]])
    of, how = known["machine"], ", ".join(sorted({network["how"] for network in networks}))
    lines = [
        "# Thirty networks",
        "",
        "Networks of torchvision and timm at 224 x 224, and small ones of transformers, with random weights: quantized",
        "by the default recipe, packed, saved, loaded and exported. `benchmarks/models.py --publish` writes this page.",
        f"Batch 1, one thread of {of['cpu']} ({of['kernel']}), torch {known['versions']['torch']};",
        f"medians of runs that took turns ({how}).",
        "Networks that `ternary.runtime.fuse` finds chains in ran fused. `reloads`",
        "says whether the network that is read from its file answers the same.",
        "",
        "| network | float | packed | ratio | float file | packed file | reloads | formats written |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network in networks:
        timed = next(r for r in network["rows"] if r["metric"] == f"{network['name']}, batch 1")
        if timed["value"] is None:
            continue
        size = next(r for r in network["rows"] if r["metric"].endswith(": whole model"))
        reloads = next(r for r in network["rows"] if r["metric"].endswith(": reloads equal"))["holds"]
        answers = "equal" if reloads else "NO"
        written = next(r for r in network["rows"] if r["metric"].endswith(": formats written"))
        formats = f"{written['value']} {written['unit']}"
        lines.append(
            f"| {network['name']} | {timed['peer_value']:.1f} ms | {timed['value']:.1f} ms | {timed['ratio']:.2f} "
            f"| {size['peer_value'] / 1e6:.1f} MB | {size['value'] / 1e6:.1f} MB | {answers} | {formats} |"
        )
    if any(network["failed"] for network in networks):
        lines += ["", "Formats that were not written, and why:", ""]
        lines += [f"- {network['name']}, {line}" for network in networks for line in network["failed"]]
    return "\n".join([*lines, "", f"Median ratio {middle['value']:.2f}, largest {max(middle['samples']):.2f}."]) + "\n"


def main() -> None:
    """Measure, or be the process of one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="a network by a part of its name; again for more"
    )
    parser.add_argument("--quick", action="store_true", help="shorter timings, three formats")
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: processor time, on a busy machine"
    )
    parser.add_argument("--publish", action="store_true", help="merge the run into models.json and docs/networks.md")
    args = parser.parse_args()
    names = [name for name in NETWORKS if not args.only or any(part in name for part in args.only)]
    preload(names)
    clock = time.thread_time if args.clock == "cpu" else time.perf_counter
    for name in names:
        network = forked(name, args.quick, clock)
        if network is None:
            print(f"{name}: failed", file=sys.stderr, flush=True)
            continue
        for r in network["rows"]:
            ratio = "" if r["ratio"] is None else f"{r['ratio']:.3f} of {r['peer']}"
            print(
                f"{r['metric']:55} {r['value']} {r['unit']} {ratio} {'' if r['holds'] is None else r['holds']}",
                flush=True,
            )
        for line in network["failed"]:
            print(f"{name}: {line}", flush=True)
        if args.publish:
            publish([network])


if __name__ == "__main__":
    main()
