"""The table of mutations fits the code, and the program tells seen mutations from survivors."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Tool = Callable[[str], ModuleType]

TABLE = """
[[one]]
promise = "Two is more than one."
change = "{change}"
file = "src/one/__init__.py"
old = "{old}"
new = "{new}"
tests = ["test_one.py{test}"]
"""


def test_every_mutation_fits_its_file(tool: Tool, root: Path) -> None:
    """The old text is in the file once, a mutated Python file still parses, and each named test exists."""
    mutation = tool("mutation")
    known = mutation.mutations()
    assert len(known) >= 30
    assert {each.package for each in known} == {"xfer", "zerocopy", "isolate", "ternary", "ttt"}
    trees: dict[Path, ast.Module] = {}
    for each in known:
        changed = each.applied((root / each.path).read_text())
        if each.path.suffix == ".py":
            ast.parse(changed)
        assert each.tests, each.change
        for node_id in each.node_ids:
            file, *names = node_id.partition("[")[0].split("::")
            if root / file not in trees:
                trees[root / file] = ast.parse((root / file).read_text())
            body = trees[root / file].body
            for name in names:
                found = [node for node in body if getattr(node, "name", None) == name]
                assert found, f"{each.change}: there is no {node_id}"
                body = found[0].body  # type: ignore[attr-defined]  # a class or a function


def test_the_page_is_made_of_the_table(tool: Tool, root: Path) -> None:
    """packages/mutations.md has every mutation; only its last column is of runs, and none has survived its last."""
    mutation = tool("mutation")
    text = (root / mutation.PAGE).read_text()
    known, verdicts = mutation.mutations(), mutation.last_verdicts(text)
    assert text == mutation.page(known, verdicts), "run tools/mutation.py --write"
    assert {verdict.split(" ")[0] for verdict in verdicts.values()} <= {"seen"}, verdicts


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one package, whose test sees one of its two comparisons."""
    package = tmp_path / "checkout" / "packages" / "one"
    (package / "src" / "one").mkdir(parents=True)
    (package / "src" / "one" / "__init__.py").write_text(
        "def more(a, b):\n    return a > b\n\n\ndef less(a, b):\n    return a < b\n"
    )
    (package / "tests").mkdir()
    (package / "tests" / "test_one.py").write_text(
        "import one\n\n\ndef test_more():\n    assert one.more(2, 1)\n\n\ndef test_less():\n    assert one.less\n"
    )
    checkout = tmp_path / "checkout"
    (checkout / "tools").mkdir()
    (checkout / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = ['--import-mode=importlib']\n")
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    return checkout


def test_seen_and_surviving_mutations(tool: Tool, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mutation that a test notices is seen; one that none notices survives, is named, and is the exit status."""
    mutation = tool("mutation")
    table = checkout / "tools" / "mutations.toml"
    (checkout / "packages").mkdir(exist_ok=True)
    seen = TABLE.format(change="the first is wrong", old="a > b", new="a < b", test="::test_more")
    table.write_text(seen)
    source = checkout / "packages" / "one" / "src" / "one" / "__init__.py"
    before = source.read_text()
    assert mutation.main(["--json", "--write"], checkout) == 0
    (outcome,) = json.loads(capsys.readouterr().out)
    assert (outcome["verdict"], outcome["detail"]) == ("seen", "test_one.py::test_more: assert False")
    page = (checkout / mutation.PAGE).read_text()
    row = "| Two is more than one. | {} | `__init__.py` | `test_one.py::{}` | {} "
    assert row.format("the first is wrong", "test_more", "seen") in page
    assert "1 mutations: 1 seen, 0 not, 0 never run. Last runs: 20" in page
    table.write_text(seen + TABLE.format(change="the second is wrong", old="a < b", new="a > b", test="::test_less"))
    assert mutation.main(["one", "--only", "SECOND", "--write"], checkout) == 1
    assert "survived: one: the second is wrong: the tests pass" in capsys.readouterr().err
    page = (checkout / mutation.PAGE).read_text()
    assert row.format("the first is wrong", "test_more", "seen") in page
    assert row.format("the second is wrong", "test_less", "survived") in page
    assert "2 mutations: 1 seen, 1 not, 0 never run." in page
    assert mutation.main(["--part", "2/2", "--list"], checkout) == 0
    assert "second" in (listed := capsys.readouterr().out)
    assert "first" not in listed
    assert source.read_text() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"old": "return"}, "has the old text 2 times, want once"),
        ({"new": "a > b"}, "the new text is the old one"),
        ({"test": "::test_gone"}, "without a mutation pytest ended with 4"),
        ({"test": chr(34).join(["::test_more", "]\nlimits = [", ""])}, "unexpected keyword argument 'limits'"),
    ],
)
def test_a_table_that_does_not_fit_is_an_error(
    tool: Tool, checkout: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], words: str
) -> None:
    """A text that is not there once, a mutation that changes nothing, and a missing test are no verdicts."""
    fields = {"change": "the first is wrong", "old": "a > b", "new": "a < b", "test": "::test_more"}
    (checkout / "tools" / "mutations.toml").write_text(TABLE.format(**(fields | change)))
    assert tool("mutation").main([], checkout) == 2
    assert words in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(tool: Tool, checkout: Path, tmp_path: Path, root: Path) -> None:
    """An interrupted run ends its tests and removes its copy."""
    test = checkout / "packages" / "one" / "tests" / "test_one.py"
    test.write_text(
        f"import time\n\n\ndef test_more():\n    open({str(tmp_path / 'begun')!r}, 'w')\n    time.sleep(300)\n"
    )
    table = TABLE.format(change="the first is wrong", old="a > b", new="a < b", test="::test_more")
    (checkout / "tools" / "mutations.toml").write_text(table)
    (tmp_path / "tmp").mkdir()
    program = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import mutation; "
    program += "sys.exit(mutation.main([], pathlib.Path(sys.argv[2])))"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(root / "tools"), str(checkout)],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job inherits that the signal is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + 100
    while not (tmp_path / "begun").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.communicate(timeout=100)[1]
    assert process.returncode == 130
    assert list((tmp_path / "tmp").iterdir()) == []
    assert tempfile.gettempdir() != str(tmp_path / "tmp")
