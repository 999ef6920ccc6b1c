"""Build, check and rehearse the release of a package.

    uv run tools/release.py status                  each package: version, CHANGELOG heading, next tag
    uv run tools/release.py check xfer-v0.1.0       whether tag, pyproject and CHANGELOG agree
    uv run tools/release.py notes xfer-v0.1.0       that version's section of the CHANGELOG
    uv run tools/release.py build xfer --out dist   sdist and wheels, as they are published
    uv run tools/release.py verify dist             the upload tool's checks, and ours
    uv run tools/release.py rehearse                build and verify all; install and use them as a stranger would
    uv run tools/release.py rehearse --fast         on this Python alone, with uv in place of pip, the READMEs alone

The release workflow runs `check`, `build`, `verify` and `notes`; `rehearse` runs the same functions. A rehearsal serves
the built files from an index on 127.0.0.1. For each document it makes an empty environment, runs exactly the install
line that the document prints, and then runs the document's Python blocks and compares their output. It also runs each
command line. It repeats this for every Python from 3.11 on that uv finds on this machine.

Wheels with a compiled core are built with zig for glibc 2.28, so one machine builds for x86-64 and for aarch64. Those
for another processor than this machine's are built and verified here, but not run.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import Parser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent

# What the publish action carries, by the commit that release.yml pins.
UPLOAD_TOOLS = {"dc37677b2e1c63e2034f94d8a5b11f265b73ba33": ("twine==7.0.0", "packaging==26.2")}  # v1.14.2
BUILD_TOOLS = ("ziglang==0.17.1", "auditwheel==6.8.2", "wheel==0.46.1")
ARCHITECTURES = ("x86_64", "aarch64")
GLIBC = (2, 28)
METADATA_VERSION = (2, 4)

_TAG = re.compile(r"(?P<package>[a-z]+)-v(?P<version>\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?)")
_HEADING = re.compile(r"^## (?P<version>\S+) \((?P<date>[^)]*)\)$", re.MULTILINE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
# Code is matched first, so that nothing in it is taken for a link.
_LINK = re.compile(
    r"^```.*?^```|`[^`\n]*`|(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)", re.MULTILINE | re.DOTALL
)

_ABSOLUTE = re.compile(r"https?://|mailto:|#")


class ReleaseError(Exception):
    """A step of a release failed; the message says which and why."""


def packages() -> list[str]:
    """Return the names of all packages."""
    return sorted(project.parent.name for project in ROOT.glob("packages/*/pyproject.toml"))


def version(package: str, root: Path = ROOT) -> str:
    """Return the static version in a package's pyproject.toml."""
    project = tomllib.loads((root / "packages" / package / "pyproject.toml").read_text())["project"]
    found: str = project["version"]
    return found


def heading(package: str, root: Path = ROOT) -> tuple[str, str]:
    """Return the newest CHANGELOG heading as (version, text in the brackets); empty strings if there is none."""
    match = _HEADING.search((root / "packages" / package / "CHANGELOG.md").read_text())
    return (match["version"], match["date"]) if match else ("", "")


def disagreements(tag: str, root: Path = ROOT) -> list[str]:
    """Describe everything that forbids publishing this tag; empty if nothing does."""
    match = _TAG.fullmatch(tag)
    if match is None:
        return [f"tag {tag!r} is not PACKAGE-vX.Y.Z, as in xfer-v1.2.3"]
    package, tagged = match["package"], match["version"]
    if not (root / "packages" / package / "pyproject.toml").exists():
        known = sorted(path.parent.name for path in root.glob("packages/*/pyproject.toml"))
        return [f"tag {tag!r} names no package; there are {', '.join(known)}"]
    found = []
    stated = version(package, root)
    if stated != tagged:
        found.append(f"packages/{package}/pyproject.toml has version {stated}, the tag {tagged}")
    written, date = heading(package, root)
    if written != tagged:
        found.append(f"packages/{package}/CHANGELOG.md begins with {written or 'no heading'}, the tag {tagged}")
    elif not _DATE.fullmatch(date):
        found.append(f"packages/{package}/CHANGELOG.md dates {tagged} {date!r}; expected YYYY-MM-DD")
    return found


def notes(tag: str, root: Path = ROOT) -> str:
    """Return the section of the CHANGELOG that a tag releases."""
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ReleaseError(f"tag {tag!r} is not PACKAGE-vX.Y.Z, as in xfer-v1.2.3")
    text = (root / "packages" / match["package"] / "CHANGELOG.md").read_text()
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        head = _HEADING.match(section)
        if head and head["version"] == match["version"]:
            return section.split("\n", 1)[1].strip() + "\n"
    raise ReleaseError(f"the CHANGELOG of {match['package']} has no section for {match['version']}")


def repository(given: str | None) -> str | None:
    """Return the address of the repository: as given, of the running workflow, or of the remote `origin`."""
    if given:
        return given.rstrip("/")
    if os.environ.get("GITHUB_REPOSITORY"):
        return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{os.environ['GITHUB_REPOSITORY']}"
    done = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    match = re.fullmatch(r"(?:https://|git@|ssh://git@)([\w.-]+)[:/](.+?)(?:\.git)?/?", done.stdout.strip())
    return f"https://{match[1]}/{match[2]}" if match else None


def absolute(text: str, folder: str, address: str, ref: str) -> str:
    """Make the relative links of a Markdown text absolute, as an index page needs them.

    Args:
        text: The Markdown text.
        folder: The folder of the text, relative to the repository.
        address: The repository's address.
        ref: The tag that the links show.
    """

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or _ABSOLUTE.match(target):
            return match[0]
        path = os.path.normpath(f"{folder}/{target}")
        return f"{match['image']}[{match['text']}]({address}/{'raw' if match['image'] else 'blob'}/{ref}/{path})"

    return _LINK.sub(link, text)


def stage(package: str, folder: Path, address: str) -> Path:
    """Copy a package's tracked files and add what only a release knows: its addresses, and links that work anywhere."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", f"packages/{package}"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    place = folder / package
    for name in filter(None, tracked.split("\0")):
        target = place / Path(name).relative_to(f"packages/{package}")
        if (ROOT / name).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    tag = f"{package}-v{version(package)}"
    tree = f"{address}/blob/{tag}/packages/{package}"
    urls = {"Homepage": f"{address}/tree/{tag}/packages/{package}", "Documentation": f"{tree}/docs/tutorial.md"}
    urls |= {"Source": address, "Issues": f"{address}/issues", "Changelog": f"{tree}/CHANGELOG.md"}
    project = place / "pyproject.toml"
    lines = [f'{name} = "{url}"' for name, url in urls.items()]
    project.write_text(project.read_text() + "\n[project.urls]\n" + "\n".join(lines) + "\n")
    readme = place / "README.md"
    readme.write_text(absolute(readme.read_text(), f"packages/{package}", address, tag))
    return place


def call(*command: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Run a command and return its stdout; if it fails, raise ReleaseError with its output."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8", stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ReleaseError(f"$ {shlex.join(command)}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def environment(folder: Path, *requirements: str, python: str = sys.executable) -> Path:
    """Make a virtual environment with these requirements; return the folder of its programs."""
    call("uv", "venv", "--quiet", "--python", python, str(folder))
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    if requirements:
        call("uv", "pip", "install", "--quiet", "--python", str(programs / "python"), *requirements)
    return programs


def build(package: str, out: Path, address: str) -> list[Path]:
    """Build a package's sdist, and its wheels from that sdist; return the files."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pentad-build-") as name:
        folder = Path(name)
        place = stage(package, folder, address)
        call("uv", "build", "--quiet", "--sdist", "--out-dir", str(folder / "sdist"), str(place))
        (sdist,) = (folder / "sdist").glob("*.tar.gz")
        if (place / "hatch_build.py").exists():
            tools = environment(folder / "tools", *BUILD_TOOLS)
            wheels = [_compiled(sdist, folder / architecture, architecture, tools) for architecture in ARCHITECTURES]
        else:
            call("uv", "build", "--quiet", "--wheel", "--out-dir", str(folder / "wheels"), str(sdist))
            wheels = list((folder / "wheels").glob("*.whl"))
        return [Path(shutil.copy(file, out)) for file in [sdist, *wheels]]


def _compiled(sdist: Path, folder: Path, architecture: str, tools: Path) -> Path:
    """Build the wheel of one processor, test that its core fits, and name it for the glibc that it needs."""
    folder.mkdir()
    compiler = folder / "zig-cc"
    target = f"{architecture}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"
    zig = shlex.join([str(tools / "python"), "-m", "ziglang"])
    compiler.write_text(f'#!/bin/sh\nexec {zig} cc -target {target} -g0 "$@"\n')
    compiler.chmod(0o755)
    # sysconfig names the platform by this variable, and the build hook names the wheel by sysconfig.
    env = os.environ | {"CC": str(compiler), "_PYTHON_HOST_PLATFORM": f"linux-{architecture}"}
    call("uv", "build", "--quiet", "--wheel", "--out-dir", str(folder / "plain"), str(sdist), env=env)
    (plain,) = (folder / "plain").glob("*.whl")
    if "linux" not in plain.name:
        raise ReleaseError(f"{plain.name} has no compiled core")
    shown = call(str(tools / "auditwheel"), "show", str(plain))
    found = re.search(r'platform tag:\s+"manylinux_(\d+)_(\d+)_(\w+)"', shown)
    if found is None or (int(found[1]), int(found[2])) > GLIBC or found[3] != architecture:
        raise ReleaseError(f"{plain.name} does not fit glibc {GLIBC[0]}.{GLIBC[1]} on {architecture}:\n{shown}")
    tag = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{architecture}"
    call(str(tools / "python"), "-m", "wheel", "tags", "--remove", "--platform-tag", tag, str(plain))
    (named,) = (folder / "plain").glob("*.whl")
    return named


def upload_tools() -> tuple[str, ...]:
    """Return the requirements of the upload tool that the pinned publish action carries."""
    workflow = (ROOT / ".github/workflows/release.yml").read_text()
    pin = re.search(r"uses: pypa/gh-action-pypi-publish@([0-9a-f]{40})", workflow)
    if pin is None or pin[1] not in UPLOAD_TOOLS:
        raise ReleaseError(
            f"the publish action is pinned to {pin and pin[1]}; add the twine it carries to UPLOAD_TOOLS"
        )
    return UPLOAD_TOOLS[pin[1]]


def verify(files: list[Path]) -> None:
    """Check built files with the publish action's upload tool, and check what it does not look at."""
    if not files:
        raise ReleaseError("there are no built files to verify")
    with tempfile.TemporaryDirectory(prefix="pentad-verify-") as folder:
        tools = environment(Path(folder) / "tools", *upload_tools())
        call(str(tools / "twine"), "check", "--strict", *map(str, files))
    found = [f"{file.name}: {line}" for file in files if file.suffix == ".whl" for line in lacks(file)]
    if found:
        raise ReleaseError("\n".join(found))


def lacks(wheel: Path) -> list[str]:
    """Describe everything that a wheel should contain for its readers and does not."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (file,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(file).decode()
        licences = [archive.read(name).decode() for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    metadata = Parser().parsestr(text)
    found = []
    if tuple(map(int, metadata["Metadata-Version"].split("."))) > METADATA_VERSION:
        found.append(f"Metadata-Version is {metadata['Metadata-Version']}; upload tools in use read up to 2.4")
    if licences != [(ROOT / "LICENSE").read_text()]:
        found.append("the licence's text is missing")
    found += [f"no {field}" for field in ("License-File", "Keywords", "Summary", "Project-URL") if not metadata[field]]
    links = [match["target"] for match in _LINK.finditer(str(metadata.get_payload())) if match["target"]]
    found += [f"relative link {link} in the description" for link in links if not _ABSOLUTE.match(link)]
    return found


@contextmanager
def index(files: list[Path]) -> Iterator[str]:
    """Serve files as a package index on 127.0.0.1; yields its address."""
    with tempfile.TemporaryDirectory(prefix="pentad-index-") as name:
        base = Path(name) / "packages"
        for file in files:
            project = base / re.split(r"-\d", file.name)[0].replace("_", "-")
            project.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, project)
        for project in list(base.iterdir()):
            links = [
                f'<a href="{file.name}#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}">{file.name}</a>'
                for file in sorted(project.iterdir())
            ]
            (project / "index.html").write_text("<!doctype html>" + "<br>".join(links))
        quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
        handler = functools.partial(quiet, directory=name)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/packages/"
            finally:
                server.shutdown()
                thread.join()


def pythons() -> list[str]:
    """Return one interpreter for each Python from 3.11 on that uv finds, and the running one for its version."""
    listed = json.loads(call("uv", "python", "list", "--only-installed", "--output-format", "json"))
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    for entry in listed:
        parts = entry["version_parts"]
        if entry["implementation"] == "cpython" and (parts["major"], parts["minor"]) >= (3, 11):
            found.setdefault(f"{parts['major']}.{parts['minor']}", entry["path"])
    return list(found.values())


def _documents() -> ModuleType:
    spec = spec_from_file_location("tools_documents", ROOT / "tools" / "documents.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def try_out(package: str, python: str, address: str, fast: bool) -> list[str]:
    """Install a package by the lines that its documents print, and run those documents and its command line.

    Args:
        package: The package.
        python: The interpreter for the environments.
        address: The local index, used beside the configured one.
        fast: Use uv in place of pip, and run the README alone.

    Returns:
        Descriptions of everything that failed.
    """
    documents = _documents()
    folder = ROOT / "packages" / package
    readme = documents.install_line((folder / "README.md").read_text(), f"pentad-{package}")
    if readme is None:
        return [f"packages/{package}/README.md prints no install line"]
    pages: dict[str, list[Path]] = {}
    for page in (folder / name for name in (("README.md",) if fast else documents.PAGES)):
        line = documents.install_line(page.read_text(), f"pentad-{package}") or readme
        pages.setdefault(line, []).append(page)
    wrong = []
    for line, group in pages.items():
        with tempfile.TemporaryDirectory(prefix="pentad-stranger-") as name:
            try:
                programs = _installed(line, Path(name) / "environment", python, address, fast)
            except ReleaseError as error:
                wrong.append(f"{package}: `{line}` fails: {error}")
                continue
            interpreter = str(programs / "python")
            for page in group:
                shown = str(page.relative_to(ROOT))
                found = documents.problems(page.read_text(), shown, interpreter, page.parent)
                wrong += [f"after `{line}`: {problem}" for problem in found]
            wrong += _command_line(package, programs)
            if package == "ternary":
                wrong += _kernels(programs)
    return wrong


def _installed(line: str, folder: Path, python: str, address: str, fast: bool) -> Path:
    """Make an empty environment and run a printed install line in it; return the folder of its programs."""
    env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT")}
    # Where no folder offers a CPU build of torch, uv chooses the build for this machine's accelerator.
    env |= {"PIP_EXTRA_INDEX_URL": address, "UV_INDEX": address, "UV_TORCH_BACKEND": "auto"}
    if env.get("PIP_FIND_LINKS"):
        env.setdefault("UV_FIND_LINKS", ",".join(env["PIP_FIND_LINKS"].split()))
        env.pop("UV_TORCH_BACKEND")
    programs = environment(folder, python=python)
    words = shlex.split(line)[2:]
    if fast:
        call("uv", "pip", "install", "--quiet", "--python", str(programs / "python"), *words, env=env)
    else:
        call("uv", "pip", "install", "--quiet", "--python", str(programs / "python"), "pip")
        call(str(programs / "python"), "-m", "pip", "install", "--quiet", *words, env=env)
    return programs


def _command_line(package: str, programs: Path) -> list[str]:
    wrong = []
    expected = version(package)
    for command in ([str(programs / package)], [str(programs / "python"), "-m", package]):
        for arguments, codes in ((["--version"], (0,)), (["doctor"], (0, 1)), (["--json", "doctor"], (0, 1))):
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
            said = done.stdout + done.stderr
            if (
                done.returncode not in codes
                or "Traceback" in said
                or (arguments == ["--version"] and expected not in said)
            ):
                wrong.append(
                    f"`{' '.join([*command[1:], *arguments]) or package}` ends {done.returncode}: {said[-800:]}"
                )
    return wrong


def _kernels(programs: Path) -> list[str]:
    """Compare the kernels of the installed core with what Linux says of the processor: wheels have another compiler."""
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    needed = {"avx2": {"avx2"}, "avxvnni": {"avx2", "avx_vnni"}}
    needed |= {"avx512vnni": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}}
    done = subprocess.run([str(programs / "ternary"), "--json", "doctor"], capture_output=True, text=True)
    available = json.loads(done.stdout)["available"]
    missing = sorted(name for name, parts in needed.items() if parts <= flags and name not in available)
    return [f"the core of the wheel runs without {', '.join(missing)}, which this processor has"] if missing else []


def rehearse(names: list[str], fast: bool, address: str, interpreters: list[str]) -> int:
    """Build, verify, install and try out packages; print one line per step and return 0 if nothing failed."""
    failures: list[str] = []

    def step(name: str, found: list[str], start: float) -> None:
        print(f"{'failed' if found else 'ok':6} {name} ({time.perf_counter() - start:.0f} s)", flush=True)
        failures.extend(found)

    with tempfile.TemporaryDirectory(prefix="pentad-release-") as folder:
        files: list[Path] = []
        # A package that an extra installs is served too.
        for package in packages():
            start = time.perf_counter()
            try:
                built = build(package, Path(folder), address)
                verify(built)
            except ReleaseError as error:
                step(f"build {package}", [str(error)], start)
                continue
            files += built
            step(f"build {package}: {', '.join(file.name for file in built)}", [], start)
        with index(files) as served:
            for python in interpreters:
                for package in names:
                    start = time.perf_counter()
                    step(f"{package} with {python}", try_out(package, python, served, fast), start)
    foreign = [each for each in ARCHITECTURES if each != platform.machine()]
    print(f"built and verified but not run here: wheels for {', '.join(foreign)}")
    for failure in failures:
        print(f"release: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="show every package's version, CHANGELOG heading and next tag")
    commands.add_parser("check", help="check one tag").add_argument("tag")
    commands.add_parser("notes", help="print one version's section of the CHANGELOG").add_argument("tag")
    building = commands.add_parser("build", help="build one package")
    building.add_argument("package", choices=packages())
    building.add_argument("--out", type=Path, default=Path("dist"), metavar="FOLDER", help="(default: dist)")
    commands.add_parser("verify", help="check built files").add_argument("folder", type=Path)
    rehearsing = commands.add_parser("rehearse", help="build, verify, install and try out")
    rehearsing.add_argument("packages", nargs="*", metavar="PACKAGE", help="which to try out (default: all)")
    rehearsing.add_argument("--fast", action="store_true", help="this Python alone, with uv, the READMEs alone")
    rehearsing.add_argument("--python", action="append", metavar="PATH", help="with this interpreter (repeatable)")
    for command in (building, rehearsing):
        command.add_argument("--repository", metavar="URL", help="the repository's address (default: the remote's)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; return 0 if nothing is wrong."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return _run(parser, args)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.command == "check":
        found = disagreements(args.tag)
        if found:
            raise ReleaseError("\nrelease: ".join(found))
        print(f"{args.tag}: tag, pyproject and CHANGELOG agree")
    elif args.command == "notes":
        print(notes(args.tag), end="")
    elif args.command == "verify":
        verify(sorted(args.folder.glob("*.whl")) + sorted(args.folder.glob("*.tar.gz")))
    elif args.command == "build":
        address = repository(args.repository)
        if address is None:
            parser.error("the repository has no remote `origin`; name its address with --repository")
        print("\n".join(map(str, build(args.package, args.out, address))))
    elif args.command == "rehearse":
        unknown = set(args.packages) - set(packages())
        if unknown:
            parser.error(f"no package is called {sorted(unknown)}; there are {', '.join(packages())}")
        address = repository(args.repository) or "https://repository.invalid/pentad"
        interpreters = args.python or ([sys.executable] if args.fast else pythons())
        return rehearse(args.packages or packages(), args.fast, address, interpreters)
    else:
        for package in packages():
            written, date = heading(package)
            print(f"{package:10} {version(package):10} changelog {written} ({date})  tag {package}-v{version(package)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
