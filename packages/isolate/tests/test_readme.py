"""The README's examples are true: its extension is loaded and its sessions are run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.rest import DocTestParser

from isolate import _function

ROOT = Path(__file__).parents[1]


def test_readme_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every session of the README gives what it shows."""
    text = (ROOT / "README.md").read_text()
    folder = tmp_path / "extensions" / "stats"
    folder.mkdir(parents=True)
    files = re.findall(r"```(?:yaml|python)\n# extensions/stats/(\S+)\n(.*?)```", text, re.S)
    assert [name for name, _ in files] == ["manifest.yaml", "main.py"]
    for name, content in files:
        (folder / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    document = Sybil([DocTestParser()]).parse(ROOT / "README.md")
    ran = 0
    try:
        for example in document.examples():
            example.evaluate()
            ran += 1
    finally:
        _function._DEFAULT.close()
        if "host" in document.namespace:
            document.namespace["host"].close()
    assert ran >= 5


def test_readme_names_every_manifest_key() -> None:
    """The table of the manifest has every key."""
    from isolate import Manifest

    text = (ROOT / "README.md").read_text()
    for name in Manifest.__struct_fields__:
        if name not in ("directory", "lock_file", "version", "description"):
            assert f"`{name}`" in text, name


def test_example_application(store: Path) -> None:
    """The example host loads two extensions, names what is wrong with the third, and works."""
    program = ROOT / "examples" / "host.py"
    if not program.exists():
        pytest.skip("the examples are not part of an installed package")
    done = subprocess.run([sys.executable, str(program), str(store)], capture_output=True, text=True, check=True)
    assert "broken was not loaded: ExtensionStartError" in done.stdout
    assert "a_package_that_is_not_there" in done.stdout
    assert f"numpy in the extension: {'1.' if sys.version_info < (3, 13) else '2.1.'}" in done.stdout
    assert "words can call back: [2, 4]" in done.stdout
