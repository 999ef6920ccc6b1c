"""Build the documentation site from the packages' own documents; a warning is an error.

    uv run tools/docs.py               into site/
    uv run tools/docs.py --out FOLDER
    uv run tools/docs.py --serve       also serve it on this machine

No page is written for the site alone. A package's README is its front page, `docs/*.md` are its other pages, its
docstrings make the reference, and its CHANGELOG is the history. This file holds the settings of mkdocs.
"""

from __future__ import annotations

import argparse
import ast
import functools
import http.server
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("xfer", "zerocopy", "isolate", "ternary", "ttt")


def pages(package: str) -> dict[str, Path]:
    """Map page names of one package to their files, in the order of the navigation."""
    folder = ROOT / "packages" / package
    tutorial = folder / "docs" / "tutorial.md"
    others = sorted(path for path in folder.glob("docs/*.md") if path != tutorial)
    found = {"index": folder / "README.md", "tutorial": tutorial}
    return found | {path.stem: path for path in others} | {"changelog": folder / "CHANGELOG.md"}


def reference(package: str) -> str:
    """Return the reference page: every public name, documented where it is defined."""
    source = (ROOT / "packages" / package / "src" / package / "__init__.py").read_text()
    names = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    lines = [f"# Reference of {package}", ""]
    for name in names:
        lines += [f"::: {package}.{name}", ""]
    return "\n".join(lines)


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
        if "://" in match[2] or not file.is_relative_to(ROOT / "packages"):
            return match[0]
        return f"![{match[1]}]({os.path.relpath(file.relative_to(ROOT / 'packages'), page.parent)})"

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
        Path("benchmarks.md"): ROOT / "packages" / "benchmarks.md",
        Path("contributing.md"): ROOT / "CONTRIBUTING.md",
    }
    places = {file: page for page, file in sources.items()}
    for page, file in sources.items():
        (docs / page).parent.mkdir(parents=True, exist_ok=True)
        (docs / page).write_text(draw(relink(file.read_text(), file, places, page), page, docs))
    for package in PACKAGES:
        (docs / package / "reference.md").write_text(reference(package))
        for picture in (ROOT / "packages" / package / "benchmarks").glob("*.png"):
            (docs / package / "benchmarks").mkdir(exist_ok=True)
            shutil.copy(picture, docs / package / "benchmarks" / picture.name)

    def navigation(package: str) -> dict[str, Any]:
        names = list(pages(package))
        names.insert(names.index("changelog"), "reference")
        titles = {"index": "Overview"}
        return {package: [{titles.get(n, n.replace("-", " ").capitalize()): f"{package}/{n}.md"} for n in names]}

    return [
        {"Pentad": "index.md"},
        *map(navigation, PACKAGES),
        {"Benchmarks": "benchmarks.md"},
        {"Contributing": "contributing.md"},
    ]


def settings(navigation: list[dict[str, Any]], docs: Path, out: Path) -> dict[str, Any]:
    """Return the settings of mkdocs."""
    options = {
        "docstring_style": "google",
        "show_root_heading": True,
        "show_source": False,
        "show_if_no_docstring": False,
        "merge_init_into_class": True,
        "signature_crossrefs": False,
        "separate_signature": True,
        "heading_level": 2,
        "filters": ["!^_"],
    }
    python = {"paths": [str(ROOT / "packages" / p / "src") for p in PACKAGES], "options": options}
    return {
        "site_name": "Pentad",
        "docs_dir": str(docs),
        "site_dir": str(out),
        "nav": navigation,
        "strict": True,
        # Addresses without directories: the site also opens from the file system.
        "use_directory_urls": False,
        "theme": {
            "name": "material",
            # Readers' browsers fetch nothing from other hosts.
            "font": False,
            "features": ["navigation.tabs", "navigation.top", "content.code.copy", "toc.follow"],
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
    """Build the site into `out` and return mkdocs's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        docs = Path(folder) / "docs"
        docs.mkdir()
        config = Path(folder) / "mkdocs.yml"
        config.write_text(yaml.safe_dump(settings(write_pages(docs), docs, out.resolve())))
        command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "-f", str(config)]
        # Keep the theme from printing an advertisement for its successor.
        return subprocess.run(command, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}).returncode


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
