"""Values of command-line options, read and checked."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any


def sizes(text: str) -> tuple[int, ...]:
    found = tuple(int(s) for s in text.split(",")) if text.replace(",", "").isdecimal() and ",," not in text else ()
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; wanted sizes joined by commas, such as 1,8,8")
    return found


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def rate(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return found


def fraction(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no fraction from 0 to 1")
    return found


def pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} lacks a name or a value; wanted {'NAME=VALUE'}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
