"""Make .venv with a CPU build of torch: the versions of uv.lock, without several GB of CUDA libraries.

    python tools/cpu_env.py                  the whole workspace, editable, in .venv
    python tools/cpu_env.py --package ttt    one package with its dev extra, and the siblings that its extras name
    python tools/cpu_env.py --python 3.12    with that interpreter

On Linux the index's default torch is a CUDA build, which also runs without a GPU but takes about 5 GB of disk. This
program makes the same environment with a CPU build of the locked torch version. It takes that build from the folders
in UV_FIND_LINKS or PIP_FIND_LINKS if one is set, else from PyTorch's own index. Use `uv run --no-sync` afterwards: a
plain `uv run` syncs the CUDA build back in.

Run it with a Python outside the environment that it makes, as `python` or `uv run --no-project` are.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def torch_pin(lock: str) -> str:
    """Return the torch version that a uv.lock pins."""
    return str(next(p["version"] for p in tomllib.loads(lock)["package"] if p["name"] == "torch"))


def members(package: str | None) -> list[str]:
    """Return the folders to install: all packages, or one with its dev extra and the siblings in its extras."""
    folders = sorted(project.parent for project in ROOT.glob("packages/*/pyproject.toml"))
    if package is None:
        return [str(folder) for folder in folders]
    text = (ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8")
    siblings = set(re.findall(r'"pentad-(\w+)>', text))
    return [
        f"{folder}[dev]" if folder.name == package else str(folder)
        for folder in folders
        if folder.name in siblings | {package}
    ]


def inside(venv: Path) -> bool:
    """Whether the running Python belongs to the environment that is to be made anew."""
    return Path(sys.prefix).resolve() == venv.resolve()


def main(argv: list[str] | None = None) -> int:
    """Build the environment; return 0 if it is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=None, help="interpreter or version, as uv understands it")
    parser.add_argument("--package", default=None, help="only this package")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where (default: .venv)")
    args = parser.parse_args(argv)
    if inside(args.venv):
        parser.error(
            f"this Python is in {args.venv}, which would be deleted; use `uv run --no-project tools/cpu_env.py`"
        )

    python = ["--python", args.python] if args.python else []
    subprocess.run(["uv", "venv", "--quiet", "--clear", *python, str(args.venv)], cwd=ROOT, check=True)

    export = ["uv", "export", "--quiet", "--no-hashes", "--prune", "torch", "--no-emit-workspace"]
    if args.package:
        export += ["--no-default-groups", "--package", f"pentad-{args.package}", "--extra", "dev"]
    environment = dict(os.environ)
    # uv separates the places by commas, pip by spaces.
    links = environment.get("UV_FIND_LINKS") or ",".join(environment.get("PIP_FIND_LINKS", "").split())
    if links:
        environment["UV_FIND_LINKS"] = links
    backend = [] if links else ["--torch-backend", "cpu"]
    pin = torch_pin((ROOT / "uv.lock").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        pins, constraint = Path(folder) / "pins.txt", Path(folder) / "torch.txt"
        subprocess.run([*export, "-o", str(pins)], cwd=ROOT, check=True)
        # A constraint: a package that needs no torch gets none.
        constraint.write_text(f"torch=={pin}\n")
        install = ["uv", "pip", "install", "--python", str(args.venv), "-r", str(pins), "-c", str(constraint), *backend]
        editable = [part for member in members(args.package) for part in ("-e", member)]
        done = subprocess.run([*install, *editable], cwd=ROOT, env=environment)
    if done.returncode == 0:
        print(f"{args.venv.name} is ready, with torch {pin} for CPU; use `uv run --no-sync …`")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
