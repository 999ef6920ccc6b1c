"""The command `ternary`: from checking a source to exporting and `doctor`. Only reads and prints."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ternary.errors import CompileError, TernaryError, UnknownModelError
from ternary.wholefile import whole_file

_EXAMPLES = """examples:
  ternary check net.tri                 show every error, with carets
  ternary fmt net.tri                   rewrite in the one canonical form
  ternary compile resnet18 -o net.py    readable PyTorch from a zoo network
  ternary train net.tri --data digits --compare float,twn --seeds 3 --out runs
  ternary quantize resnet18 --rule 'layer4.*=int8'    error, zeros and bytes of every layer
  ternary inspect runs/net-twn.safetensors --picture net.png
  ternary export runs/net-twn.safetensors --to onnx --to gguf --out release
  ternary doctor                        which kernel runs packed layers here, and why
"""

_FORMATS_TEXT = """formats:
  safetensors        the model file of this library: 2 bits a weight, program inside
  base3              the same at 1.6 bits a weight, for storage
  onnx               standard operators, INT2 weights (opset 25)
  onnx-exact         the same with 8-bit activations, as the packed layers round them
  onnx-matmulnbits   linear layers as onnxruntime's own 2-bit operator
  onnx-compatible    opset 18, for runtimes without INT2: 2 bits in the file, float once loaded
  gguf               TQ2_0 blocks of llama.cpp
  pt2, torchscript   torch's own files; load them after `import ternary`

A manifest.json with sizes, SHA-256 digests and versions is written last.

example:
  ternary export resnet18 --shape 1,3,224,224 --to onnx --to pt2 --out release
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 for errors in what was given, 2 for wrong usage, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except CompileError as e:
        print(e, file=sys.stderr)
    except (TernaryError, OSError) as e:
        print(f"ternary: {e}", file=sys.stderr)
    except KeyboardInterrupt:
        print("ternary: interrupted; files already written are whole", file=sys.stderr)
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ternary",
        description="Check, train, pack and look at ternary networks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    c = command("check", _check, "Show every error of sources, with carets.")
    c.add_argument("sources", nargs="+", help="a .tri file, a zoo name, or - for standard input")
    c.add_argument("--json", action="store_true", help="one JSON list of diagnostics, for editors")

    c = command("fmt", _fmt, "Rewrite sources in the one canonical form.")
    c.add_argument("sources", nargs="+", help=".tri files, or - to filter standard input")
    c.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file would change")

    c = command("compile", _compile, "Write the PyTorch source that a program stands for.")
    c.add_argument("source", help="a .tri file, a zoo name, or - for standard input")
    c.add_argument("-o", "--output", help="where to (standard output by default)")
    c.add_argument("--float", action="store_true", dest="as_float", help="plain float layers instead of ternary ones")

    c = command("train", _train, "Train a program on real data, pack it, and compare quantizers.")
    c.add_argument("source", help="a .tri file, a zoo name, or - for standard input")
    c.add_argument("--data", required=True, help="digits, mnist1d, or a .npz file with arrays x and y")
    c.add_argument(
        "--shape", type=_sizes, default=(), help="shape of one sample (1,8,8), where the program leaves it open"
    )
    c.add_argument("--compare", default="as written", help="float and names of quantizers, joined by commas")
    c.add_argument("--seeds", type=_positive, default=1, help="trainings per quantizer (default %(default)s)")
    c.add_argument("--epochs", type=_positive, default=20, help="passes over the data (default %(default)s)")
    c.add_argument("--batch", type=_positive, default=64, help="samples per step (default %(default)s)")
    c.add_argument("--learning-rate", type=_rate, default=2e-3, help="its peak (default %(default)s)")
    c.add_argument(
        "--set",
        action="append",
        type=_pair,
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the model, may be given again",
    )
    c.add_argument("--threads", type=_positive, default=1, help="threads for torch (one is best for small networks)")
    c.add_argument("--out", default="runs", help="directory for model files, table and pictures")
    c.add_argument("--json", action="store_true", help="print the table as JSON")

    c = command("quantize", _quantize, "Quantize a model file or an untrained program, and report each layer.")
    c.add_argument("model", help="a .safetensors file of this library, a .tri file or a zoo name")
    c.add_argument("-o", "--output", help="write the packed model here")
    c.add_argument("--quantizer", default="twn", help="for layers that are not ternary yet (default %(default)s)")
    c.add_argument(
        "--rule",
        action="append",
        type=_pair,
        default=[],
        metavar="PATTERN=PRECISION",
        help="ternary, int8 or float for layers of that name, such as 'layer4.*=int8'; the first that fits counts",
    )
    c.add_argument("--json", action="store_true", help="print the report as JSON")

    c = command("pack", _pack, "Write a model file again with another encoding.")
    c.add_argument("model", help="a .safetensors file of this library")
    c.add_argument("output", help="where to")
    c.add_argument(
        "--encoding", choices=("2bit", "base3"), default="base3", help="4 or 5 weights a byte (default %(default)s)"
    )

    c = command("inspect", _inspect, "Show layers, zeros and bytes of a model file.")
    c.add_argument("model", help="a .safetensors file of this library")
    c.add_argument("--picture", help="draw it to this file (PNG, SVG or PDF)")
    c.add_argument("--json", action="store_true", help="print the layers as JSON")

    c = command("bench", _bench, "Time compiling and one forward pass of a network.")
    c.add_argument("source", help="a .tri file, a zoo name, or - for standard input")
    c.add_argument("--shape", type=_sizes, required=True, help="input shape, such as 1,3,224,224")
    c.add_argument("--repeat", type=_positive, default=10, help="forward passes (default %(default)s)")
    c.add_argument("--json", action="store_true", help="print the times as JSON")
    _add_export(command)
    _add_doctor(command)
    return parser


def _read(name: str) -> tuple[str | Path, str]:
    """Return a source (text or path) and what to call it: a file, a zoo network, or standard input."""
    from ternary import zoo

    if name == "-":
        return sys.stdin.read(), "<stdin>"
    if not Path(name).exists() and name.removesuffix(".tri") in zoo.names():
        return zoo.source(name.removesuffix(".tri")), name
    if not Path(name).exists():
        raise UnknownModelError(f"{name!r} is neither a file nor in the zoo ({', '.join(zoo.names())})")
    return Path(name), name


def _check(a: argparse.Namespace) -> int:
    from ternary.language.compiler import analyse, read_source

    found: list[dict[str, object]] = []
    for name in a.sources:
        try:
            text = read_source(*_read(name))
            diagnostics = analyse(text)[1].sorted()
        except CompileError as e:
            text, diagnostics = e.source, e.diagnostics
        found += [d.as_dict(text) for d in diagnostics]
        if not a.json:
            for d in diagnostics:
                print(d.render(text), end="\n\n")
            print(f"{text.name}: {len(diagnostics) or 'no'} error{'' if len(diagnostics) == 1 else 's'}")
    if a.json:
        print(json.dumps(found, indent=1))
    return int(bool(found))


def _fmt(a: argparse.Namespace) -> int:
    from ternary.language.formatter import format_source

    changed = broken = False
    for name in a.sources:
        path = Path(name).resolve()  # a link stays one
        try:
            text = format_source(sys.stdin.read(), name="<stdin>") if name == "-" else format_source(path)
        except CompileError as e:
            print(e, file=sys.stderr)
            broken = True
            continue
        if name == "-":
            sys.stdout.write(text)
        elif text != path.read_text(encoding="utf-8"):
            changed = True
            print(f"{'would reformat' if a.check else 'reformatted'} {name}")
            if not a.check:
                with whole_file(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
    return int(broken or (a.check and changed))


def _compile(a: argparse.Namespace) -> int:
    from ternary.language.compiler import generate

    source, name = _read(a.source)
    code = generate(source, name=name, quantized=not a.as_float)
    if a.output:
        with whole_file(a.output) as temporary:
            temporary.write_text(code, encoding="utf-8")
    else:
        sys.stdout.write(code)
    return 0


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(s) for s in text.split(",")) if text.replace(",", "").isdecimal() and ",," not in text else ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; wanted sizes joined by commas, such as 1,8,8")
    return sizes


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return rate


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} lacks a name or a value; wanted {'NAME=VALUE'}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _arguments(program: Any, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the arguments given for the model of a program; an unknown name is an error."""
    from ternary.language.diagnostics import did_you_mean

    known = {p.name for d in program.definitions if d.kind == "model" for p in d.parameters}
    for name, _ in pairs:
        if name not in known:
            advice = did_you_mean(name, known) or f"its parameters are {', '.join(sorted(known)) or 'none'}"
            raise TernaryError(f"the model has no parameter '{name}'; {advice}")
    return dict(pairs)


def _train(a: argparse.Namespace) -> int:
    import torch

    from ternary import data, experiment, plot
    from ternary.language.compiler import parse_source, read_source
    from ternary.train import TrainConfig

    torch.set_num_threads(a.threads)
    source, name = _read(a.source)
    text = read_source(source, name).text
    program = parse_source(text, name=name)[0]
    arguments = _arguments(program, a.set)
    split = data.load(a.data)
    shape = a.shape or _shape_of(program)
    config = TrainConfig(epochs=a.epochs, learning_rate=a.learning_rate)
    methods = tuple(a.compare.split(","))
    plan = experiment.Plan(
        text, arguments=arguments, methods=methods, seeds=a.seeds, batch=a.batch, config=config, shape=shape
    )
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    show = sys.stderr.isatty()

    def progress(method: str, seed: int, epoch: int, history: Any) -> None:
        if show:
            bar = "█" * (20 * epoch // a.epochs)
            state = f"loss {history.loss[-1]:.4f}  held-out {history.accuracy[-1]:.4f}"
            print(f"\r{method:>10} seed {seed} {bar:20} {epoch}/{a.epochs}  {state}", end="", file=sys.stderr)

    results = experiment.run(plan, split, out, progress=progress)
    if show:
        print(file=sys.stderr)
    rows = [
        {
            "data": a.data,
            "method": r.method,
            "accuracy": r.mean,
            "spread": r.spread,
            "seeds": list(r.accuracies),
            "file": str(r.file),
            "bytes": r.file_bytes,
        }
        for r in results
    ]
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if a.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{'method':12} {'accuracy':>9} {'+-':>7} {'bytes':>10}")
        for r in results:
            print(f"{r.method:12} {r.mean:9.2%} {r.spread:7.2%} {r.file_bytes:10,}  {r.file}")
    try:
        plot.curves({r.method: r.history for r in results}, out / "curves.png", f"{name} on {a.data}")
        plot.accuracies({a.data: {r.method: list(r.accuracies) for r in results}}, out / "accuracy.png")
    except TernaryError as e:
        print(f"ternary: no pictures: {e}", file=sys.stderr)
    return 0


def _shape_of(program: Any) -> tuple[int, ...]:
    """Return the sample shape that the model's signature fixes, or () if it is not all numbers."""
    from ternary.language import syntax as s

    models = [d for d in program.definitions if d.kind == "model" and d.forward is not None]
    if len(models) != 1:
        return ()
    dims = models[0].forward.inputs[0].type.dims[1:]
    sizes = [d.value for d in dims if isinstance(d, s.Literal) and isinstance(d.value, int)]
    return tuple(sizes) if len(sizes) == len(dims) else ()


def _quantize(a: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ternary import modelfile
    from ternary.language.compiler import compile as compile_source
    from ternary.quantize import Recipe, quantize

    if a.model.endswith(".safetensors"):
        model = modelfile.load(a.model)
        given = modelfile.info(a.model).arguments
    else:
        source, name = _read(a.model)
        model, given = compile_source(source, name=name, quantized=False)(), {}
    made, report = quantize(model, Recipe(quantizer=a.quantizer, rules=tuple(a.rule)))
    if a.output:
        modelfile.save(made, a.output, arguments=given)
    print(json.dumps([asdict(r) for r in report.layers], indent=1) if a.json else report)
    return 0


def _pack(a: argparse.Namespace) -> int:
    from ternary import modelfile

    before = modelfile.info(a.model)
    after = modelfile.save(modelfile.load(a.model), a.output, arguments=before.arguments, encoding=a.encoding)
    print(f"{a.output}: {after.file_bytes:,} bytes, before {before.file_bytes:,}")
    return 0


def _inspect(a: argparse.Namespace) -> int:
    from ternary import modelfile, plot

    found = modelfile.info(a.model)
    rows = []
    for name, entry in found.layers.items():
        size = math.prod(entry.shape)
        packed = found.tensor_bytes.get((name + "." if name else "") + "weight.packed", 0)
        rows.append({"layer": name, "shape": list(entry.shape), "zeros": entry.zeros / max(1, size), "bytes": packed})
    if a.json:
        whole = {"model": found.model, "arguments": found.arguments, "bytes": found.file_bytes, "layers": rows}
        print(json.dumps(whole, indent=1))
    else:
        print(
            f"{found.model}({', '.join(f'{k}={v!r}' for k, v in found.arguments.items())}), {found.file_bytes:,} bytes"
        )
        for row in rows:
            print(f"{row['layer']!s:40} {row['shape']!s:20} zeros {row['zeros']:6.1%} {row['bytes']:>10,} bytes")
    if a.picture:
        plot.model_picture(found, a.picture)
        print(f"picture: {a.picture}", file=sys.stderr)
    return 0


def _bench(a: argparse.Namespace) -> int:
    import statistics

    import torch

    from ternary.language.compiler import compile as compile_source

    source, name = _read(a.source)
    begin = time.perf_counter()
    made = compile_source(source, name=name)
    compiled = time.perf_counter() - begin
    model = made().eval()
    times = []
    with torch.inference_mode():
        try:
            x = torch.randn(a.shape)
            model(x)
        except (RuntimeError, TypeError) as e:
            raise TernaryError(f"{name} does not take one input of shape {list(a.shape)}: {e}") from None
        for _ in range(a.repeat):
            begin = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - begin)
    row = {
        "compile_ms": 1e3 * compiled,
        "forward_ms": 1e3 * statistics.median(times),
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(row) if a.json else "\n".join(f"{k:12} {v:,.2f}" for k, v in row.items()))
    return 0


def _add_export(command: Any) -> None:
    c = command("export", _export, "Write a model in the formats of other runtimes, with a manifest.")
    c.epilog, c.formatter_class = _FORMATS_TEXT, argparse.RawDescriptionHelpFormatter
    c.add_argument("model", help="a .safetensors file of this library, a .tri file or a zoo name")
    c.add_argument("--to", action="append", required=True, metavar="FORMAT", help="a format, may be given again")
    c.add_argument("--out", required=True, help="directory for the files and manifest.json")
    c.add_argument(
        "--shape", type=_sizes, default=(), help="input shape such as 1,3,224,224, where the program leaves it open"
    )
    c.add_argument("--name", default="", help="first part of the files' names (the model's by default)")
    c.add_argument("--json", action="store_true", help="print the manifest as JSON")


def _export(a: argparse.Namespace) -> int:
    from ternary import modelfile
    from ternary.export import export
    from ternary.language.compiler import compile as compile_source

    given: dict[str, Any] = {}
    if a.model.endswith(".safetensors"):
        given = modelfile.info(a.model).arguments
        model = modelfile.load(a.model)
    else:
        source, name = _read(a.model)
        model = compile_source(source, name=name)()
    show = sys.stderr.isatty()

    def progress(kind: str, done: int, count: int) -> None:
        if show:
            bar = "█" * (20 * done // count)
            print(f"\r{bar:20} {done}/{count} {kind:20}", end="" if kind else "\n", file=sys.stderr, flush=True)

    manifest = export(
        *(model, a.out, a.to),
        example=_example(model, a.shape),
        name=a.name or type(model).__name__.lower(),
        arguments=given,
        progress=progress,
    )
    if a.json:
        print(json.dumps(manifest.as_dict(), indent=1))
    else:
        for f in manifest.files:
            print(f"{f.format:17} {f.bytes:>12,} bytes  {f.sha256[:16]}  {Path(a.out, f.name)}")
    return 0


def _example(model: Any, shape: tuple[int, ...]) -> Any:
    """Return an input of the shape that was given or that the program fixes (a batch of 2), or None."""
    import torch

    from ternary.language.compiler import parse_source

    if shape:
        return torch.randn(shape)
    source = getattr(model, "__source__", "")
    sample = _shape_of(parse_source(source)[0]) if source else ()
    return torch.randn(2, *sample) if sample else None


def _add_doctor(command: Any) -> None:
    c = command("doctor", _doctor, "Say which kernel runs packed layers here and why, and what is installed.")
    c.add_argument("--json", action="store_true")


def _doctor(a: argparse.Namespace) -> int:
    from ternary.runtime import doctor

    report = doctor()
    print(json.dumps(report.as_dict(), indent=1) if a.json else report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
