"""The site is made from the packages' own documents and needs nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("mermaidx", reason="needs the docs group")
griffe = pytest.importorskip("griffe", reason="needs the docs group")

Tool = Callable[[str], ModuleType]

PAGE = """# Rooms

```mermaid
flowchart LR
  pool["_shared/pool.py"] --> errors["errors.py"]
```

After it.
"""


def test_a_diagram_becomes_pictures(tool: Tool, tmp_path: Path) -> None:
    """A mermaid block is drawn once for light and once for dark, in files beside the page that need no script."""
    (tmp_path / "xfer").mkdir()
    text = tool("docs").draw(PAGE, Path("xfer/architecture.md"), tmp_path)
    assert "```" not in text
    assert text.count("![Diagram](architecture-1-") == 2
    assert text.endswith("After it.\n")
    for shade in ("light", "dark"):
        drawing = (tmp_path / "xfer" / f"architecture-1-{shade}.svg").read_text()
        assert drawing.startswith("<svg")
        assert "_shared/pool.py" in drawing
        assert "<script" not in drawing


def test_a_diagram_with_a_mistake_is_refused(tool: Tool, tmp_path: Path) -> None:
    """A block that is no mermaid ends the build, and the error quotes it."""
    with pytest.raises(RuntimeError, match="Parse error"):
        tool("docs").draw("```mermaid\nflowchart LR\n a[[[ --> \n```\n", Path("index.md"), tmp_path)


@pytest.mark.parametrize("package", ["xfer", "zerocopy", "isolate", "ternary", "ttt"])
def test_the_reference_and_the_page_on_errors_have_every_public_name(tool: Tool, package: str) -> None:
    """Each name of a public module is on the reference page or on that of the errors; each error has its own words."""
    docs = tool("docs")
    pages = docs.generated(package)
    shown = set(re.findall(r"^::: (\S+)", pages["reference"] + "\n" + pages["troubleshooting"], re.MULTILINE))
    names = [name for listed in docs.public_names(package).values() for name in listed]
    assert len(names) > 20
    missing = [name for name in names if name not in shown]
    assert [name for name in missing if f"{package}.errors.{name.rpartition('.')[2]}" not in shown] == []


def test_examples_are_on_the_site(tool: Tool) -> None:
    """A package's example programs are shown in full, with their paths."""
    page = tool("docs").examples("isolate")
    assert "## `host.py`" in page
    assert "## `extensions/" in page
    assert "isolate.Host(" in page or "Host(" in page


def test_sessions_of_docstrings_keep_their_lines(tool: Tool, root: Path) -> None:
    """`Example:` is read as a section with sessions, not as running text."""
    extensions = griffe.load_extensions(str(root / "tools" / "theme" / "examples.py"))
    source = [str(root / "packages" / "xfer" / "src")]
    xfer = griffe.load("xfer", search_paths=source, docstring_parser="google", extensions=extensions)
    kinds = [part.kind.value for part in xfer["_shared.pool.Pool"].docstring.parsed]
    assert "examples" in kinds


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_site_searches_in_a_browser_from_a_folder(tool: Tool, tmp_path: Path) -> None:
    """The built site, opened as a file, finds pages; every public name has a heading."""
    assert tool("docs").build(tmp_path / "site") == 0
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    page = f"{(tmp_path / 'site' / 'index.html').as_uri()}?q=stale+handle"
    command = ["chromium", *options, "--virtual-time-budget=20000", "--dump-dom", page]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert re.search(r"\d+ matching documents", shown)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_site_from_a_folder_searches_in_a_frame(tmp_path: Path, root: Path) -> None:
    """Where a page comes from a folder, the script puts a class in place of Worker; from a server it does nothing."""
    script = (root / "tools" / "theme" / "from-a-folder.js").read_text()
    for protocol, expected in (("file:", "function"), ("https:", "undefined")):
        program = f"globalThis.window = globalThis; globalThis.location = {{ protocol: '{protocol}' }};\n"
        program += f"delete globalThis.Worker;\n{script}\nconsole.log(typeof globalThis.Worker);"
        done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


@pytest.mark.parametrize("package", ["xfer", "zerocopy", "isolate", "ternary", "ttt"])
def test_every_public_name_is_described_and_shown(tool: Tool, package: str) -> None:
    """Each name of a public module has a docstring; each function and class has a session, but for the errors."""
    docs = tool("docs")
    silent = []
    for name in (name for listed in docs.public_names(package).values() for name in listed):
        entry = docs.defined(docs.tree(package)[name.removeprefix(f"{package}.")])
        text = entry.docstring.value if entry.docstring else ""
        shown = entry.kind.value not in ("function", "class") or name.endswith("Error") or ">>> " in text
        if not text or not shown:
            silent.append(name)
    assert silent == []


def test_links_to_other_projects_need_no_network(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lists of names that can be fetched become links; without a network there are none, and the build goes on."""
    docs = tool("docs")
    (tmp_path / "objects.inv").write_bytes(b"names")
    monkeypatch.setattr(docs, "LINKED", {"one": f"{tmp_path.as_uri()}/"})
    (found,) = docs.inventories(tmp_path)
    assert found["base_url"] == f"{tmp_path.as_uri()}/"
    assert (tmp_path / "one.inv").read_bytes() == b"names"
    monkeypatch.setattr(docs, "LINKED", {"one": f"{tmp_path.as_uri()}/missing/", "two": "http://127.0.0.1:9/"})
    assert docs.inventories(tmp_path) == []
    assert "types do not link to one" in capsys.readouterr().err
