"""Dependencies that are broken, or hostile: the host names what failed, and nothing hangs or is left."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from integration_test_base import IntegrationTestBase

from isolate import Policy
from isolate.errors import IsolateError, UnsupportedTypeError

FAILS = "raise OSError('libgone.so.1: cannot open shared object file')\n"
STANDARD = ("asyncio", "ctypes", "enum", "errors", "json", "link", "site", "socket", "struct", "typing", "wire")
WHEELS = {
    # Named like modules of the standard library, of ours, and of what a worker uses where it is installed.
    "shadows": {f"{name}.py": FAILS for name in (*STANDARD, "isolate", "isolate_worker", "msgspec", "xfer")},
    "another-msgspec": {"msgspec/__init__.py": "class DecodeError(Exception): pass\nmsgpack = None\n"},
    "exits": {"exits.pth": "import os; os._exit(0)\n"},
    "interrupts": {"interrupts.pth": "import sys; raise KeyboardInterrupt\n"},
    "closes": {"closes.pth": "import os; os.closerange(0, 100)\n"},
    "speaks": {"speaks.pth": "import os, sys; os.write(int(sys.argv[1]), b'x' * 100)\n"},
    "empties": {"empties.pth": "import sys; sys.path.clear(); sys.argv.clear()\n"},
    "forgets": {"forgets.pth": "import sys; [sys.modules.pop(n) for n in list(sys.modules) if 'isolate' in n]\n"},
    "ignores": {"ignores.pth": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"},
}
"""Distributions, by name: the files that each installs."""
WORKS = {"shadows", "another-msgspec", "empties", "forgets", "ignores"}


def write_wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    """Write a wheel of version 1.0 with these files."""
    stem = f"{name.replace('-', '_')}-1.0"
    info = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files = files | {f"{stem}.dist-info/{file}": text for file, text in info.items()}
    record = []
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(text)}\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "".join(record) + f"{stem}.dist-info/RECORD,,\n")


class TestDependencies(IntegrationTestBase):
    """What the environment of an extension brings along."""

    @pytest.mark.parametrize("name", WHEELS)
    def test_a_distribution(self, name: str, tmp_path: Path) -> None:
        """It works, or the error says when the worker ended."""
        wheels = tmp_path / "wheels"
        wheels.mkdir()
        write_wheel(wheels, name, WHEELS[name])
        host = self.make_host(policy=Policy(find_links=(str(wheels),)))
        folder = self.create_extension(
            "a", "def fine(x): return x", dependencies=[name], restart={"policy": "never"}, timeouts={"start": 30}
        )
        if name in WORKS:
            assert host.load(folder).call.fine([1, 1 << 70, "text"]) == [1, 1 << 70, "text"]
        else:
            with pytest.raises(
                IsolateError, match="broke the protocol" if name == "speaks" else "before it had loaded"
            ):
                host.load(folder)

    def test_a_library_that_cannot_be_imported(self) -> None:
        """A call with its values fails and says why; the extension goes on."""
        folder = self.create_extension("a", "def fine(x): return x")
        (folder / "numpy.py").write_text(FAILS)
        call = self.make_host().load(folder).call
        for value in (np.ones(3), np.ones(100_000), np.float32(1), np.ma.masked_array([1], [True])):
            with pytest.raises(UnsupportedTypeError, match=r"numpy cannot be imported here: OSError: libgone\.so"):
                call.fine(value)
        assert call.fine(5) == 5
