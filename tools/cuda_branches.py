"""Lists the functions that take another path on CUDA, and what runs each of them without a GPU.

    python tools/cuda_branches.py            report functions that nothing runs
    python tools/cuda_branches.py --write    also write the table into CONTRIBUTING.md

A test says what it runs in a comment of its own line, by the function's name or a pattern:

    # cuda: xfer._shared.cuda_ipc:* by emulator

The ways are `emulator` (packages/xfer/tests/emulator), `interpreter` (Triton's), `compiled` (ahead of time by Triton),
`meta` (torch's meta device), `stand-in` (a test's own) and `GPU`. A function that only a GPU runs is reported too.
"""

from __future__ import annotations

import ast
import fnmatch
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "CONTRIBUTING.md"
WAYS = ("emulator", "interpreter", "compiled", "meta", "stand-in", "GPU")
MARKER = re.compile(r"^\s*# cuda: (\S+) by (\S+)$", re.MULTILINE)
BLOCK = re.compile(
    r"(?<=<!-- CUDA branches, by tools/cuda_branches.py -->\n).*?(?=<!-- end of CUDA branches -->)", re.DOTALL
)
NAMES = {"cuda", "cupy", "is_cuda", "triton", "TRITON", "load_cupy", "CUDARuntimeError"}


class Marker(NamedTuple):
    """A test file's statement that it runs functions."""

    pattern: str
    way: str
    file: str


def functions(file: Path) -> Iterator[str]:
    """Yield the top-level functions and the methods of a file that name CUDA in their code."""
    module = ".".join(file.parts[file.parts.index("src") + 1 :]).removesuffix(".py")
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _names_cuda(node):
            yield f"{module}:{node.name}"
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and _names_cuda(part):
                    yield f"{module}:{node.name}.{part.name}"


def _names_cuda(function: ast.AST) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and node.attr in NAMES:
            return True
        if isinstance(node, ast.Name) and node.id in NAMES:
            return True
        if isinstance(node, ast.Constant) and node.value in ("cuda", "triton"):
            return True
    return False


def markers() -> list[Marker]:
    """Return the markers of all tests.

    Raises:
        ValueError: A marker names a way that there is not.
    """
    found = []
    for file in sorted([*ROOT.glob("packages/*/tests/test_*.py"), *ROOT.glob("tests/test_*.py")]):
        for pattern, way in MARKER.findall(file.read_text()):
            if way not in WAYS:
                raise ValueError(f"{file}: got the way {way!r}, want one of {', '.join(WAYS)}")
            found.append(Marker(pattern, way, str(file.relative_to(ROOT))))
    return found


def report() -> tuple[list[str], list[str], list[str]]:
    """Return the table's lines, the functions that nothing runs, and the markers that fit none."""
    known = markers()
    lines = ["| function | run by | in |", "|---|---|---|"]
    bare, used = [], set()
    for file in sorted(ROOT.glob("packages/*/src/**/*.py")):
        for name in functions(file):
            fitting = [marker for marker in known if fnmatch.fnmatchcase(name, marker.pattern)]
            used.update(fitting)
            if all(marker.way == "GPU" for marker in fitting):
                bare.append(name)
            ways = ", ".join(sorted({marker.way for marker in fitting}))
            files = ", ".join(sorted({Path(marker.file).name for marker in fitting}))
            lines.append(f"| `{name}` | {ways or 'nothing'} | {files} |")
    return lines, bare, [f"{marker.file}: {marker.pattern}" for marker in known if marker not in used]


def main() -> int:
    """Report, write the table if asked; return 0 if each function runs without a GPU and the table is up to date."""
    lines, bare, idle = report()
    text = PAGE.read_text()
    wanted = BLOCK.sub(lambda _: "\n".join(lines) + "\n", text)
    if "--write" in sys.argv:
        PAGE.write_text(wanted)
    elif text != wanted:
        print("the table in CONTRIBUTING.md is not up to date: python tools/cuda_branches.py --write")
    for name in bare:
        print(f"nothing runs the CUDA branch of {name} without a GPU: mark the test that does")
    for marker in idle:
        print(f"a marker fits no function: {marker}")
    return 1 if bare or idle or ("--write" not in sys.argv and text != wanted) else 0


if __name__ == "__main__":
    sys.exit(main())
