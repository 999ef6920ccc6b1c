"""Make .venv with a CPU build of torch: the versions of uv.lock, without several GB of CUDA libraries.

    python tools/cpu_env.py                 the whole workspace, editable, in .venv
    python tools/cpu_env.py --python 3.12   with that interpreter

On Linux the index's default torch is a CUDA build, which also runs without a GPU but takes about 5 GB of disk. This
program makes the same environment with a CPU build of the locked torch version. It takes that build from the folders
in UV_FIND_LINKS or PIP_FIND_LINKS if one is set, else from PyTorch's own index. Use `uv run --no-sync` afterwards: a
plain `uv run` syncs the CUDA build back in.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def torch_pin(lock: str) -> str:
    """Return the torch version that a uv.lock pins."""
    return str(next(p["version"] for p in tomllib.loads(lock)["package"] if p["name"] == "torch"))


def main(argv: list[str] | None = None) -> int:
    """Build the environment; return 0 if it is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=None, help="interpreter or version, as uv understands it")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where (default: .venv)")
    args = parser.parse_args(argv)

    python = ["--python", args.python] if args.python else []
    subprocess.run(["uv", "venv", "--quiet", "--clear", *python, str(args.venv)], cwd=ROOT, check=True)

    export = ["uv", "export", "--quiet", "--no-hashes", "--prune", "torch", "--no-emit-workspace"]
    environment = dict(os.environ)
    # uv separates the places by commas, pip by spaces.
    links = environment.get("UV_FIND_LINKS") or ",".join(environment.get("PIP_FIND_LINKS", "").split())
    if links:
        environment["UV_FIND_LINKS"] = links
    backend = [] if links else ["--torch-backend", "cpu"]
    members = [
        part for project in sorted(ROOT.glob("packages/*/pyproject.toml")) for part in ("-e", str(project.parent))
    ]
    pin = torch_pin((ROOT / "uv.lock").read_text())
    with tempfile.TemporaryDirectory() as folder:
        pins = str(Path(folder) / "pins.txt")
        subprocess.run([*export, "-o", pins], cwd=ROOT, check=True)
        install = ["uv", "pip", "install", "--python", str(args.venv), "-r", pins, f"torch=={pin}", *members, *backend]
        done = subprocess.run(install, cwd=ROOT, env=environment)
    if done.returncode == 0:
        print(f"{args.venv.name} is ready, with torch {pin} for CPU; use `uv run --no-sync …`")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
