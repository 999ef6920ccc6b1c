"""Write a model in the formats of other runtimes, with a manifest."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ternary._cli.sources import locate, shape_of
from ternary._cli.values import sizes

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.epilog, parser.formatter_class = _FORMATS_TEXT, argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", help="a .safetensors file of this library, a .tri file or a zoo name")
    parser.add_argument("--to", action="append", required=True, metavar="FORMAT", help="a format, may be given again")
    parser.add_argument("--out", required=True, help="directory for the files and manifest.json")
    parser.add_argument(
        "--shape", type=sizes, default=(), help="input shape such as 1,3,224,224, where the program leaves it open"
    )
    parser.add_argument("--name", default="", help="first part of the files' names (the model's by default)")


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    from ternary import _modelfile as modelfile
    from ternary._language.compiler import compile as compile_source
    from ternary.export import export

    given: dict[str, Any] = {}
    if a.model.endswith(".safetensors"):
        given = modelfile.info(a.model).arguments
        model = modelfile.load(a.model)
    else:
        source, name = locate(a.model)
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
        print(json.dumps(manifest.as_dict(), indent=2))
    else:
        for f in manifest.files:
            print(f"{f.format:17} {f.bytes:>12,} bytes  {f.sha256[:16]}  {Path(a.out, f.name)}")
    return 0


def _example(model: Any, shape: tuple[int, ...]) -> Any:
    """Return an input of the shape that was given or that the program fixes (a batch of 2), or None."""
    import torch

    from ternary._language.compiler import parse_source

    if shape:
        return torch.randn(shape)
    source = getattr(model, "__source__", "")
    sample = shape_of(parse_source(source)[0]) if source else ()
    return torch.randn(2, *sample) if sample else None
