"""Quantize a model file or an untrained program, and report each layer."""

from __future__ import annotations

import argparse
import json

from ternary._cli.sources import locate
from ternary._cli.values import pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("model", help="a .safetensors file of this library, a .tri file or a zoo name")
    parser.add_argument("-o", "--output", help="write the packed model here")
    parser.add_argument("--quantizer", default="twn", help="for layers that are not ternary yet (default %(default)s)")
    parser.add_argument(
        "--rule",
        action="append",
        type=pair,
        default=[],
        metavar="PATTERN=PRECISION",
        help="ternary, int8 or float for layers of that name, such as 'layer4.*=int8'; the first that fits counts",
    )


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    from dataclasses import asdict

    from ternary import _modelfile as modelfile
    from ternary._language.compiler import compile as compile_source
    from ternary._quantization import Recipe, quantize

    if a.model.endswith(".safetensors"):
        model = modelfile.load(a.model)
        given = modelfile.info(a.model).arguments
    else:
        source, name = locate(a.model)
        model, given = compile_source(source, name=name, quantized=False)(), {}
    made, report = quantize(model, Recipe(quantizer=a.quantizer, rules=tuple(a.rule)))
    if a.output:
        modelfile.save(made, a.output, arguments=given)
    print(json.dumps([asdict(r) for r in report.layers], indent=2) if a.json else report)
    return 0
