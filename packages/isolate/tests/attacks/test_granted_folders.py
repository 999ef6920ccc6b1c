"""A folder that was granted is granted as long as it is that folder, and not what an extension puts in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from isolate import Host, Manifest, Policy
from isolate._manifest import Sandbox
from isolate._sandbox import available

CODE = """
import os, pathlib
def replace(path, target):
    os.rename(path, path + ".was")
    os.symlink(target, path)
def tries(path, outside):
    done = []
    for place in (outside, path):
        for name, use in (
            ("read", lambda: pathlib.Path(place, "secret").read_text()),
            ("write", lambda: pathlib.Path(place, "new").write_text("x")),
            ("list", lambda: os.listdir(place)),
        ):
            try:
                use()
                done.append(f"{name} {place}")
            except OSError:
                pass
    return done
"""


@pytest.mark.parametrize("way", ["read", "write"])
@pytest.mark.parametrize("level", ["landlock", "bwrap"])
def test_a_link_in_the_place_of_a_granted_folder(tmp_path: Path, level: str, way: str) -> None:
    """Another extension that may write above it leads the next start elsewhere: that is refused, and reported."""
    if available()[level]:
        pytest.skip(available()[level])
    data, outside, folder = tmp_path / "data", tmp_path / "outside", tmp_path / "extension"
    for place in (data, data / "mine", outside, folder):
        place.mkdir()
    (outside / "secret").write_text("secret")
    (folder / "main.py").write_text(CODE)
    mine = str(data / "mine")
    above = Sandbox(level=level, write=(str(data),))  # type: ignore[arg-type]
    sandbox = Sandbox(level=level, **{way: (mine,)})  # type: ignore[arg-type]
    policy = Policy(allow_read=(str(data),), allow_write=(str(data),))
    with Host(tmp_path / "store", policy=policy) as host:
        mover = host.load(Manifest(name="mover", directory=folder, sandbox=above))
        extension = host.load(Manifest(name="user", directory=folder, sandbox=sandbox))
        assert extension.report is not None
        if extension.report.sandbox.missing:
            pytest.skip(f"this machine does not provide {level}: {extension.report.sandbox.missing}")
        mover.call.replace(mine, str(outside))
        extension.reload()
        assert extension.call.tries(mine, str(outside)) == []
        assert any("it leads elsewhere" in line for line in extension.report.sandbox.missing)
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
