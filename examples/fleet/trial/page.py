"""The page about one run of the fleet: what moved, what memory it took, and the change of versions."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from trial.clients import Outcome, photo

COLOURS = ("#b8c0cc", "#3f51b5", "#2ecc40")
STYLE = """
body { margin: 0 auto; max-width: 1000px; padding: 32px 24px; font: 15px/1.5 system-ui, sans-serif }
table { border-collapse: collapse; width: 100% } td { border-top: 1px solid #e3e6eb; padding: 6px 8px 6px 0 }
td:last-child { text-align: right; font-weight: 600 } img { width: 100% }
"""


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was measured, in words, each with its figure."""
    versions = {name: value for name, value in found.items() if isinstance(value, dict) and "right" in value}
    moved, copies = found["bytes"], found["workers"] * found["weights"]
    lines = [("requests; failed ones", f"{found['requests']:,}; {found['failed']}")]
    lines += [("answers that are wholly of one version", f"{found['of one version']:,}")]
    for name, value in versions.items():
        lines += [(f"{name}: right sums of its answers; median time", f"{value['right']:,} of {value['answers']:,}; ")]
        lines[-1] = (lines[-1][0], lines[-1][1] + f"{value['median ms']} ms")
    lines += [
        ("photos and pictures that moved to and from plugins", f"{moved['arrays'] / 1e6:,.0f} MB"),
        ("bytes that were sent for them: their handles", f"{moved['handles'] / 1e3:,.0f} kB"),
        (f"the weights in {found['workers']} workers, shared pages in proportion", f"{found['held']:,} bytes"),
        ("one copy; a copy for each worker", f"{found['weights']:,}; {copies:,} bytes"),
        ("the same, and the memory that each worker has to itself", f"{found['memory'] / 1e6:,.0f} MB"),
        ("bytes of the weights that workers wrote", f"{found['written']}"),
        ("numpy of the plugins", found["numpy"]),
    ]
    return lines + (beside(found) if "adapted" in found else [])


def beside(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what ttt did beside the workers, in words."""
    node, adapted = found["beside"], found["adapted"]
    lines = [
        (f"copies of the weights in {node['processes']} processes while ttt adapted them", f"{node['copies']}"),
        ("bytes of them that ttt's process maps; that it wrote", f"{node['ttt mapped']:,}; {node['ttt wrote']}"),
        (
            "the memory that this process has to itself, its libraries included",
            f"{node['ttt elsewhere'] / 1e6:,.0f} MB",
        ),
    ]
    for task, told in adapted["tasks"].items():
        fell = f"{told['loss before']} to {told['loss after']}"
        lines += [(f"ARC task {task}: loss on its own pairs before and after an adapter over {told['version']}", fell)]
        sizes = f"{told['shared']:,}; {told['private']:,}; {told['adapters']:,}"
        lines += [("its weights: bytes in the shared copy; of the vectors of ttt's words; of the adapter", sizes)]
    return [*lines, ("ARC tasks that ttt solved by search beside it, of 2", str(adapted["solved by search"]))]


def draw(found: dict[str, Any], outcomes: list[Outcome]) -> bytes:
    """Return a picture of the change of versions, the memory, and one request."""
    adapted = "adapted" in found
    figure = Figure(figsize=(10, 7.6 if adapted else 5.6), layout="constrained")
    time, memory, asked, answered, *its = figure.subplot_mosaic("tttt;mmab" + ";ppll" * adapted).values()
    begin = min(outcome.at for outcome in outcomes)
    for number, version in enumerate(sorted({outcome.version for outcome in outcomes} - {""})):
        own = [outcome for outcome in outcomes if outcome.version == version]
        bins: dict[int, list[bool]] = {}
        for outcome in own:
            bins.setdefault(int((outcome.at - begin) * 4), []).append(outcome.right)
        shares = [100 * sum(found) / len(found) for _, found in sorted(bins.items())]
        time.plot([place / 4 for place in sorted(bins)], shares, "o-", color=COLOURS[number], label=version)
    time.axvline(found["rolled out at"], color="#ff4136", linewidth=1)
    time.set(xlabel="seconds; the line is the new version", ylabel="right sums, %", ylim=(0, 105))
    time.legend(loc="lower right")
    names = ["shared", "one copy", f"{found['workers']} copies"]
    sizes = [found["held"], found["weights"], found["workers"] * found["weights"]]
    memory.barh(names, [size / 1e3 for size in sizes], color=[COLOURS[1], COLOURS[0], COLOURS[0]])
    memory.set(xlabel=f"kB of weights in {found['workers']} workers")
    memory.invert_yaxis()
    if adapted:
        draw_beside(found, *its)
    for axes, title, image in ((asked, "a photo", photo(2, 3).numpy()), (answered, "its answer", found["picture"])):
        axes.imshow(image, cmap="Greens")
        axes.set(title=title, xticks=[], yticks=[])
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=120)
    return made.getvalue()


def draw_beside(found: dict[str, Any], process: Any, learned: Any) -> None:
    """Draw where the weights of ttt's process lie, and what its adapters learned."""
    tasks = found["adapted"]["tasks"]
    told = next(iter(tasks.values()))
    sizes = [told[kind] / 1e3 for kind in ("shared", "private", "adapters")]
    process.barh(["shared", "ttt's words", "adapter"], sizes, color=[COLOURS[1], COLOURS[0], COLOURS[2]])
    process.set(xlabel="kB of the model in ttt's process")
    process.invert_yaxis()
    for number, kind in enumerate(("loss before", "loss after")):
        places = [place + 0.4 * number for place in range(len(tasks))]
        learned.bar(places, [told[kind] for told in tasks.values()], 0.36, color=COLOURS[2 * number], label=kind[5:])
    learned.set_xticks([place + 0.2 for place in range(len(tasks))], list(tasks))
    learned.set(ylabel="loss", title="ARC tasks, before and after an adapter")
    learned.legend()


def write_page(folder: Path, found: dict[str, Any], outcomes: list[Outcome]) -> None:
    """Write `fleet.html`, which needs no other file, and its picture `fleet.png`, each whole or not at all."""
    drawn = draw(found, outcomes)
    picture = base64.b64encode(drawn).decode()
    table = "".join(f"<tr><td>{escape(what)}</td><td>{escape(figure)}</td></tr>" for what, figure in rows(found))
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>The fleet</title><style>{STYLE}</style>"
    body = f"<h1>The fleet</h1><img alt='Versions, memory and one request' src='data:image/png;base64,{picture}'>"
    for name, content in (("fleet.png", drawn), ("fleet.html", f"{head}{body}<table>{table}</table>".encode())):
        unfinished = folder / f".{name}"
        try:
            unfinished.write_bytes(content)
            unfinished.replace(folder / name)
        finally:
            unfinished.unlink(missing_ok=True)
