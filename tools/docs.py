"""Build the documentation site from the packages' own documents; a warning is an error.

    uv run tools/docs.py               into site/
    uv run tools/docs.py --out FOLDER
    uv run tools/docs.py --serve       also serve it on this machine

No page is written for the site alone. A package's README is its front page, `docs/*.md` are its other pages, its
docstrings make the reference and the page on its errors, `examples/` is shown in full, and its CHANGELOG is the
history. The site needs no server: opened from a folder it looks and searches the same. Types link to the documentation
of Python, numpy, torch and Ray if their lists of names can be fetched while it is built. A public name that is not on
the site is an error. This file holds the settings of mkdocs.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
THEME = ROOT / "tools" / "theme"
PACKAGES = ("xfer", "zerocopy", "isolate", "ternary", "ttt")
FLEET_PICTURE = Path("examples/fleet/fleet.png")
# Where types of other projects are documented.
LINKED = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "ray": "https://docs.ray.io/en/latest/",
}


def pages(package: str) -> dict[str, Path]:
    """Map page names of one package to their files, in the order of the navigation."""
    folder = ROOT / "packages" / package
    first = {name: folder / "docs" / f"{name}.md" for name in ("tutorial", "how-to")}
    others = {path.stem: path for path in sorted(folder.glob("docs/*.md"))}
    return {"index": folder / "README.md"} | first | others | {"changelog": folder / "CHANGELOG.md"}


@functools.cache
def tree(package: str) -> Any:
    """Return a package as griffe reads it, without importing it."""
    import griffe

    source = str(ROOT / "packages" / package / "src")
    return griffe.load(package, search_paths=[source], docstring_parser="google", resolve_aliases=True)


def defined(entry: Any) -> Any:
    """Return what an imported name stands for."""
    return entry.final_target if entry.is_alias else entry


def public_modules(package: str) -> list[str]:
    """Return the dotted names of the modules that users import, the package first."""

    def below(module: Any) -> Iterator[str]:
        if module.exports is not None:
            yield module.path
        for name, member in sorted(module.members.items()):
            if not member.is_alias and member.kind.value == "module" and not name.startswith("_"):
                yield from below(member)

    return list(below(tree(package)))


def public_names(package: str) -> dict[str, list[str]]:
    """Return the dotted public names of each public module; each object once, at its shortest path."""
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for module in sorted(public_modules(package), key=lambda name: (name.count("."), name)):
        here = tree(package) if module == package else tree(package)[module.removeprefix(f"{package}.")]
        for name in map(str, here.exports):
            entry = defined(here[name])
            if entry.kind.value != "module" and entry.path not in seen:
                found.setdefault(module, []).append(f"{module}.{name}")
                seen.add(entry.path)
    return found


def reference(package: str) -> str:
    """Return the reference page: every public name but the errors, under the module that users import it from."""
    lines = [f"# Reference of {package}", ""]
    lines += [
        "Everything on this page is public. The errors are on the page [Troubleshooting](troubleshooting.md).",
        "",
    ]
    for module, names in public_names(package).items():
        shown = [name for name in names if not _is_error(package, name)]
        if not shown:
            continue
        lines += [f"## `{module}`", ""]
        if module != package:
            here = tree(package)[module.removeprefix(f"{package}.")]
            lines += [here.docstring.value if here.docstring else "", ""]
        for name in shown:
            lines += [f"::: {name}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)


def generated(package: str) -> dict[str, str]:
    """Return the pages that are made from a package's code, by name."""
    found = {"examples": examples(package), "reference": reference(package)}
    found["troubleshooting"] = troubleshooting(package)
    return {name: text for name, text in found.items() if text}


def inventories(folder: Path) -> list[dict[str, Any]]:
    """Fetch the lists of names that other projects' sites offer for links; without a network there are fewer links.

    Args:
        folder: Where the lists are kept while the site is built.
    """
    found = []
    for name, base in LINKED.items():
        place = folder / f"{name}.inv"
        try:
            with urllib.request.urlopen(f"{base}objects.inv", timeout=5) as answer:
                place.write_bytes(answer.read())
        except OSError as error:
            print(f"docs: types do not link to {name} and what follows it: {error}", file=sys.stderr)
            break
        found.append({"url": place.as_uri(), "base_url": base, "domains": ["py"]})
    return found


def _is_error(package: str, name: str) -> bool:
    errors = tree(package)["errors"]
    last = name.rpartition(".")[2]
    return last in map(str, errors.exports)


def troubleshooting(package: str) -> str:
    """Return the page on a package's errors: when each is raised and what to do, from its docstring."""
    errors = tree(package)["errors"]
    base = next(name for name in map(str, errors.exports) if "Base of all" in defined(errors[name]).docstring.value)
    lines = [f"# Troubleshooting {package}", ""]
    lines += [
        f"`{package} doctor` in a shell says what this machine offers and what is missing. Every error that {package} "
        f"raises on purpose is in `{package}.errors` and derives from `{base}`. The message of an error has the values "
        "of the case; this page says what each error means and what to do.",
        "",
    ]
    names = [name for name in map(str, errors.exports) if name != base]
    for name in [base, *sorted(names)]:
        lines += [f"::: {package}.errors.{name}", "    options:", "      heading_level: 2", ""]
    return "\n".join(lines)


def examples(package: str) -> str:
    """Return the page with the package's example programs, in full; an empty text if it has none."""
    folder = ROOT / "packages" / package / "examples"
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".tri", ".yaml", ".toml"))
    lines = [
        f"# Examples of {package}",
        "",
        f"These programs are in `packages/{package}/examples/`. The tests run them.",
        "",
    ]
    kinds = {".py": "python", ".tri": "text", ".yaml": "yaml", ".toml": "toml"}
    for path in files:
        lines += [
            f"## `{path.relative_to(folder)}`",
            "",
            f"```{kinds[path.suffix]}",
            path.read_text().rstrip(),
            "```",
            "",
        ]
    return "\n".join(lines) if files else ""


def relink(text: str, source: Path, places: dict[Path, Path], page: Path) -> str:
    """Rewrite the links of a Markdown text from repository paths to site paths.

    Args:
        text: The content of `source`.
        source: The file in the repository.
        places: The site path of each repository file that is a page.
        page: The site path of this text.
    """

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        if not target or "://" in target:
            return match[0]
        file = (source.parent / target).resolve()
        if file not in places:
            # A folder or program is no page: keep its name without the link.
            return match[1]
        address = os.path.relpath(places[file], page.parent)
        return f"[{match[1]}]({address}{'#' + anchor if anchor else ''})"

    def picture(match: re.Match[str]) -> str:
        file = (source.parent / match[2]).resolve()
        base = next((base for base in (ROOT / "packages", ROOT) if file.is_relative_to(base)), None)
        if "://" in match[2] or base is None:
            return match[0]
        return f"![{match[1]}]({os.path.relpath(file.relative_to(base), page.parent)})"

    text = re.sub(r"!\[([^\]]*)\]\(([^)\s]+\.png)\)", picture, text)
    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def draw(text: str, page: Path, docs: Path) -> str:
    """Replace a page's mermaid blocks by pictures, so that readers need no script and no network.

    Args:
        text: The page's Markdown.
        page: Where on the site the page stands; its pictures go beside it.
        docs: The folder of the site's pages.
    """
    import mermaidx

    count = itertools.count(1)

    def picture(match: re.Match[str]) -> str:
        stem = f"{page.stem}-{next(count)}"
        links = []
        for theme, shade in (("neutral", "light"), ("dark", "dark")):
            drawing = mermaidx.render(match[1], theme=theme).svg()
            (docs / page).with_name(f"{stem}-{shade}.svg").write_text(drawing)
            links.append(f"![Diagram]({stem}-{shade}.svg#only-{shade})")
        return "\n".join(links)

    return re.sub(r"^```mermaid\n(.*?)^```$", picture, text, flags=re.MULTILINE | re.DOTALL)


def write_pages(docs: Path) -> list[dict[str, Any]]:
    """Write every page under `docs` and return the navigation."""
    sources = {Path("index.md"): ROOT / "README.md"}
    sources |= {Path(p) / f"{name}.md": file for p in PACKAGES for name, file in pages(p).items()}
    sources |= {
        Path("fleet.md"): ROOT / "examples" / "fleet" / "README.md",
        Path("benchmarks.md"): ROOT / "packages" / "benchmarks.md",
        Path("gpu.md"): ROOT / "packages" / "gpu.md",
        Path("nodes.md"): ROOT / "packages" / "nodes.md",
        Path("mutations.md"): ROOT / "packages" / "mutations.md",
        Path("contributing.md"): ROOT / "CONTRIBUTING.md",
    }
    places = {file: page for page, file in sources.items()}
    for page, file in sources.items():
        (docs / page).parent.mkdir(parents=True, exist_ok=True)
        head = "---\nhide: [navigation]\n---\n\n" if page.parent == Path() else ""
        (docs / page).write_text(head + draw(relink(file.read_text(), file, places, page), page, docs))
    for package in PACKAGES:
        for name, text in generated(package).items():
            (docs / package / f"{name}.md").write_text(text)
        folder = ROOT / "packages" / package
        for picture in [*folder.glob("benchmarks/*.png"), *folder.glob("docs/pictures/*.png")]:
            place = docs / package / picture.parent.name
            place.mkdir(exist_ok=True)
            shutil.copy(picture, place / picture.name)
    (docs / FLEET_PICTURE).parent.mkdir(parents=True)
    shutil.copy(ROOT / FLEET_PICTURE, docs / FLEET_PICTURE)
    (docs / "theme").mkdir()
    for name in ("site.css", "from-a-folder.js"):
        shutil.copy(THEME / name, docs / "theme")

    def navigation(package: str) -> dict[str, Any]:
        names = list(pages(package))
        names[names.index("changelog") : -1] = list(generated(package))
        titles = {"index": "Overview", "how-to": "How to"}
        return {package: [{titles.get(n, n.replace("-", " ").capitalize()): f"{package}/{n}.md"} for n in names]}

    return [
        {"Pentad": "index.md"},
        {"The fleet": "fleet.md"},
        *map(navigation, PACKAGES),
        {"Benchmarks": "benchmarks.md"},
        {"On a GPU": "gpu.md"},
        {"Many nodes": "nodes.md"},
        {"Broken promises": "mutations.md"},
        {"Contributing": "contributing.md"},
    ]


def settings(navigation: list[dict[str, Any]], docs: Path, out: Path, names: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of mkdocs.

    Args:
        navigation: The pages.
        docs: The folder of the pages.
        out: The folder of the site.
        names: Inventories of other projects, for links from types.
    """
    options = {
        "docstring_style": "google",
        "show_root_heading": True,
        "show_root_full_path": True,
        "show_source": False,
        "show_if_no_docstring": False,
        "show_signature_annotations": True,
        "signature_crossrefs": True,
        "separate_signature": True,
        "show_symbol_type_heading": True,
        "show_symbol_type_toc": True,
        "merge_init_into_class": True,
        "members_order": "source",
        "filters": ["!^_"],
        "extensions": [str(THEME / "examples.py")],
    }
    sources = [str(ROOT / "packages" / p / "src") for p in PACKAGES]
    python = {"paths": sources, "options": options, "inventories": names}
    return {
        "site_name": "Pentad",
        "docs_dir": str(docs),
        "site_dir": str(out),
        "nav": navigation,
        "strict": True,
        # Addresses without directories: the site also opens from the file system.
        "use_directory_urls": False,
        "extra_css": ["theme/site.css"],
        # In place of the offline plugin's own script, which a browser would fetch from another host.
        "extra": {"polyfills": ["theme/from-a-folder.js"]},
        "theme": {
            "name": "material",
            # Readers' browsers fetch nothing from other hosts.
            "font": False,
            "features": ["navigation.tabs", "navigation.top", "content.code.copy", "toc.follow", "search.highlight"],
            "palette": [
                {"media": "(prefers-color-scheme: light)", "scheme": "default", "primary": "indigo"},
                {"media": "(prefers-color-scheme: dark)", "scheme": "slate", "primary": "indigo"},
            ],
        },
        "plugins": ["search", {"mkdocstrings": {"handlers": {"python": python}}}],
        "markdown_extensions": ["admonition", "tables", "toc", "pymdownx.highlight", "pymdownx.superfences"],
        "validation": {"links": {"anchors": "warn", "absolute_links": "warn", "not_found": "warn"}},
    }


def build(out: Path) -> int:
    """Build the site into `out` and return mkdocs's exit status, or 1 if a public name is not documented."""
    with tempfile.TemporaryDirectory() as folder:
        docs = Path(folder) / "docs"
        docs.mkdir()
        config = Path(folder) / "mkdocs.yml"
        names = inventories(Path(folder))
        config.write_text(yaml.safe_dump(settings(write_pages(docs), docs, out.resolve(), names)))
        command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "-f", str(config)]
        # Keep the theme from printing an advertisement for its successor.
        status = subprocess.run(command, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}).returncode
    if status:
        return status
    _searchable_from_a_folder(out)
    missing = undocumented(out)
    for name in missing:
        print(f"docs: {name} is public and not on the site", file=sys.stderr)
    return 1 if missing else 0


def _searchable_from_a_folder(out: Path) -> None:
    # A page from a folder may load a script, and no JSON. The theme then expects the index in this variable.
    index = (out / "search" / "search_index.json").read_text()
    (out / "search" / "search_index.js").write_text(f"var __index = {index}")


def undocumented(out: Path) -> list[str]:
    """Return the public names of all packages for which the site has no heading."""
    found: set[str] = set()
    for page in out.glob("*/*.html"):
        found.update(re.findall(r'<h\d id="([\w.]+)"', page.read_text()))
    missing = []
    for package in PACKAGES:
        for name in itertools.chain.from_iterable(public_names(package).values()):
            place = f"{package}.errors.{name.rpartition('.')[2]}" if _is_error(package, name) else name
            if place not in found:
                missing.append(name)
    return missing


def main(argv: list[str] | None = None) -> int:
    """Build the site and serve it if asked; return 0 if there was no warning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site", metavar="FOLDER", help="where (default: site/)")
    parser.add_argument("--serve", type=int, nargs="?", const=8000, metavar="PORT", help="serve it on 127.0.0.1")
    args = parser.parse_args(argv)
    status = build(args.out)
    if status == 0 and args.serve:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(args.out))
        with http.server.ThreadingHTTPServer(("127.0.0.1", args.serve), handler) as server:
            print(f"http://127.0.0.1:{args.serve}/ until Ctrl-C")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()
    return status


if __name__ == "__main__":
    sys.exit(main())
