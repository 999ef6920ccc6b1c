"""Run the Python blocks of Markdown documents, and compare what they print with the output that the page shows.

    uv run tools/documents.py                        the READMEs, tutorials and how-to pages
    uv run tools/documents.py packages/xfer/README.md
    uv run tools/documents.py --write FILE           put the outputs into the page

All ```python blocks of a document run in one process, in order, in an empty folder, with warnings as errors. A ```text
block directly after a Python block is its expected output. `...` in it stands for any text, for figures that change
from run to run: `--write` runs the document twice and writes `...` where the outputs differ. A block that prints must
show its output; one that prints nothing must not have any. A block whose first line is a comment with a path is a file
of the folder and is not run.

A picture that a page shows from `pictures/` is made by its blocks: they write that file, and `--write` copies it beside
the page. Pictures are compared by their size in pixels, because fonts and drawing libraries differ between machines.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What of a package runs by itself.
PAGES = ("README.md", "docs/tutorial.md", "docs/how-to.md")

_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n*^```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^```\w+\n# (?P<path>[\w.-]+(?:/[\w.-]+)+)\n(?P<content>.*?)^```\n", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"!\[[^\]]*\]\((?P<path>pictures/[\w.-]+\.png)\)")
_INSTALL = re.compile(r"(?:\A|(?<=[`\s]))pip install (?:[^`#\n]*)")

# Worker processes may import the main module again, so it does nothing when imported.
_MAIN = """\
if __name__ == "__main__":
    import doctest as _doctest, json as _json, linecache as _linecache, os as _os, pathlib as _pathlib, sys as _sys

    _blocks = _json.loads(_pathlib.Path(_sys.argv[1]).read_text(encoding="utf-8"))
    # Programs may read the source of a function, as from a file or a notebook cell.
    _lines = {_line + _n: _text for _line, _code in _blocks for _n, _text in enumerate(_code.splitlines(True))}
    _source = [_lines.get(_n, "\\n") for _n in range(1, max(_lines, default=0) + 1)]
    _linecache.cache[_sys.argv[2]] = (sum(map(len, _source)), None, _source, _sys.argv[2])
    for _line, _code in _blocks:
        if _code.lstrip().startswith(">>>"):
            _test = _doctest.DocTestParser().get_doctest(_code, globals(), _sys.argv[2], _sys.argv[2], _line - 1)
            _test.globs = globals()  # later blocks use its names
            try:
                _doctest.DebugRunner(optionflags=_doctest.ELLIPSIS).run(_test, clear_globs=False)
            except _doctest.UnexpectedException as _error:
                raise _error.exc_info[1]
        else:
            exec(compile("\\n" * (_line - 1) + _code, _sys.argv[2], "exec"), globals())
        _sys.stdout.flush()
        _os.write(1, _sys.argv[3].encode() + b"\\n")
"""


@dataclass(frozen=True, slots=True)
class Block:
    """One Python block.

    Attributes:
        line: Line of the document on which the code starts.
        code: The code.
        expected: The output that the page shows, or None if it shows none.
        span: Where block and output are in the text.
    """

    line: int
    code: str
    expected: str | None
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ran:
    """What the blocks of a document did.

    Attributes:
        printed: What each block printed, as far as they ran.
        failure: What the process wrote to stderr if it failed.
        pictures: The pictures of the page that the blocks made, by path.
    """

    printed: list[str]
    failure: str
    pictures: dict[str, bytes]


def blocks(text: str) -> list[Block]:
    """Return the Python blocks of a Markdown text."""
    found = []
    for match in _BLOCK.finditer(text):
        if _FILE.match(match[0]):
            continue
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(line, match["code"], match["output"], match.span()))
    return found


def files(text: str) -> dict[str, str]:
    """Return the files that a Markdown text shows, by path."""
    return {match["path"]: match["content"] for match in _FILE.finditer(text)}


def install_line(text: str, distribution: str) -> str | None:
    """Return the first command of a Markdown text that installs a distribution from an index, or None."""
    for match in _INSTALL.finditer(text):
        line = match[0].strip()
        if re.search(rf"\b{re.escape(distribution)}\b", line) and "git+" not in line and " -e " not in line:
            return line
    return None


def same(expected: str, output: str) -> bool:
    """Whether an output is the expected one, where `...` stands for any text."""
    pattern = ".*?".join(re.escape(part) for part in expected.rstrip().split("..."))
    return re.fullmatch(pattern, output.rstrip(), re.DOTALL) is not None


def run(text: str, document: str, python: str = sys.executable, timeout: float = 600) -> Ran:
    """Run a document's blocks in a new process, in a folder with nothing but the files that the page shows.

    Args:
        text: The Markdown text.
        document: The document's name, for tracebacks.
        python: The interpreter.
        timeout: Seconds for all of them.
    """
    mark = "--- end of block of the document ---"
    with tempfile.TemporaryDirectory(prefix="pentad-document-") as folder:
        base, work = Path(folder), Path(folder) / "work"
        work.mkdir()
        for path, content in files(text).items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(content, encoding="utf-8")
        (base / "main.py").write_text(_MAIN)
        (base / "blocks.json").write_text(json.dumps([(block.line, block.code) for block in blocks(text)]))
        command = [python, "-W", "error", str(base / "main.py"), str(base / "blocks.json"), document, mark]
        done = subprocess.run(
            command, cwd=work, capture_output=True, encoding="utf-8", timeout=timeout, stdin=subprocess.DEVNULL
        )
        shown = {match["path"] for match in _PICTURE.finditer(text)}
        pictures = {path: (work / path).read_bytes() for path in sorted(shown) if (work / path).is_file()}
    return Ran(done.stdout.split(mark + "\n")[:-1], done.stderr if done.returncode else "", pictures)


def pixels(picture: bytes) -> tuple[int, int]:
    """Return the width and height of a PNG."""
    width, height = struct.unpack(">II", picture[16:24])
    return width, height


def problems(text: str, document: str, python: str = sys.executable, folder: Path | None = None) -> list[str]:
    """Run a document; describe each block that fails or does something else than the page shows.

    Args:
        text: The Markdown text.
        document: The document's name, for the descriptions.
        python: The interpreter.
        folder: The page's folder, which holds its pictures.
    """
    ran = run(text, document, python)
    wrong = []
    for block, output in zip(blocks(text), ran.printed, strict=False):
        place = f"{document}:{block.line}"
        if block.expected is None and output.strip():
            wrong.append(f"{place}: prints {output.strip()!r}, and the page shows no output")
        if block.expected is not None and not same(block.expected, output):
            wrong.append(f"{place}: expected output\n{block.expected}\nbut it prints\n{output}")
    for match in _PICTURE.finditer(text) if folder else ():
        kept, made = (folder or Path()) / match["path"], ran.pictures.get(match["path"])
        if made is None or not kept.is_file():
            wrong.append(f"{document}: {match['path']} is {'not made by a block' if made is None else 'missing'}")
        elif pixels(kept.read_bytes()) != pixels(made):
            wrong.append(f"{document}: {match['path']} has other dimensions than the picture that the blocks make")
    if ran.failure:
        wrong.append(f"{document}: {ran.failure[-4000:]}")
    return wrong


def filled(text: str, printed: list[str]) -> str:
    """Return the text with the outputs of its blocks. An output that still fits its `...` stays as it is."""
    for block, output in reversed(list(zip(blocks(text), printed, strict=False))):
        if block.expected is not None and same(block.expected, output):
            continue
        shown = f"\n```text\n{output.rstrip()}\n```\n" if output.strip() else ""
        start, end = block.span
        text = f"{text[:start]}```python\n{block.code}```\n{shown}{text[end:]}"
    return text


def common(first: str, second: str) -> str:
    """Return what two outputs of a block have in common, with `...` where they differ."""
    a, b = (re.findall(r"\d+(?:\.\d+)?|\w+|\s+|.", text) for text in (first, second))
    parts = [
        "".join(a[start:end]) if kind == "equal" else "..."
        for kind, start, end, _, _ in SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    ]
    return "".join(parts)


def documents() -> list[Path]:
    """Return the documents that run by themselves: the READMEs, and each package's tutorial and how-to page."""
    first = [ROOT / "README.md", ROOT / "examples" / "fleet" / "README.md"]
    return [*first, *sorted(path for name in PAGES for path in ROOT.glob(f"packages/*/{name}"))]


def main(argv: Iterable[str] | None = None) -> int:
    """Run the documents; return 0 if every block runs and prints what its page shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="*", type=Path, metavar="FILE", help="which (default: all)")
    parser.add_argument("--write", action="store_true", help="put the outputs into the pages")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="interpreter (default: this one)")
    args = parser.parse_args(list(argv) if argv is not None else None)
    status = 0
    for document in args.documents or documents():
        text = document.read_text(encoding="utf-8")
        if args.write:
            first, second = (run(text, str(document), args.python) for _ in range(2))
            printed = [common(*pair) for pair in zip(first.printed, second.printed, strict=False)]
            document.write_text(filled(text, printed), encoding="utf-8")
            for path, picture in first.pictures.items():
                (document.parent / path).parent.mkdir(exist_ok=True)
                (document.parent / path).write_bytes(picture)
            wrong = [first.failure] if first.failure else []
        else:
            wrong = problems(text, str(document), args.python, document.parent)
        print(f"{document}: {len(blocks(text))} blocks, {'failed' if wrong else 'ok'}")
        for line in wrong:
            print(line, file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
