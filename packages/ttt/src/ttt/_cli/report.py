"""The HTML report of a run: pictures of pairs and attempts, confidence, time, memory; opens offline."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from ttt._events import TaskResult
from ttt._files import OUTPUT, write_atomically
from ttt._runs.saved import SavedRun, read_run
from ttt._tasks.picture import differences, grid_image, png
from ttt.results import score, solved
from ttt.results._calibration import reliability
from ttt.results._evaluate import KINDS
from ttt.values import Grid, Task, same


def write_report(folder: Path, out: Path) -> None:
    """Write the HTML report of a run's folder."""
    write_atomically(out, report_html(read_run(folder)).encode(), OUTPUT)


def report_html(run: SavedRun) -> str:
    """Return the report as one HTML document without scripts, links or external resources."""
    finished = [t for t in run.tasks if t.id in run.results]
    known = [t for t in finished if t.has_solutions]
    parts = [_head(run, finished, known)]
    if known:
        parts.append(_overview(known, [run.results[t.id] for t in known], calibrated=run.calibrated))
    parts.append("<h2>Tasks</h2>")
    parts += [
        task_section(t, run.results[t.id], first=i < 6, calibrated=run.calibrated) for i, t in enumerate(finished)
    ]
    waiting = [t.id for t in run.tasks if t.id not in run.results]
    if waiting:
        parts.append(f"<h2>Not finished</h2><p>{', '.join(f'<code>{escape(i)}</code>' for i in waiting)}</p>")
    if run.rejected:
        rows = "".join(f"<li><code>{escape(r.id)}</code> {escape(r.reason)}</li>" for r in run.rejected)
        parts.append(f"<h2>Refused</h2><ul>{rows}</ul>")
    return document("ttt run", "".join(parts))


def document(title: str, body: str) -> str:
    """Return a whole HTML document in the style of the reports, without scripts or external resources."""
    style = files("ttt._cli").joinpath("report.css").read_text("utf-8")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{style}</style></head><body>{body}</body></html>\n"
    )


def _head(run: SavedRun, finished: Sequence[Task], known: Sequence[Task]) -> str:
    results = [run.results[t.id] for t in finished]
    facts = [("tasks", f"{len(finished)} of {len(run.tasks)}")]
    if known:
        scored = score([run.results[t.id] for t in known], known)
        low, high = scored.interval()
        facts.append(("solved whole", f"{len(scored.solved)} of {scored.total}"))
        facts.append(("pass@2", f"{100 * scored.pass2 / scored.total:.1f} %"))
        facts.append(("95 % interval", f"{100 * low:.0f} to {100 * high:.0f} %"))
    if results:
        facts.append(("CPU time per task", f"{sum(r.cpu_seconds for r in results) / len(results):.1f} s"))
        facts.append(("largest memory", f"{max(r.peak_memory for r in results) / 1e6:.0f} MB"))
    boxes = "".join(
        f'<div class="fact"><b>{escape(v)}</b><span class="soft">{escape(k)}</span></div>' for k, v in facts
    )
    budget = run.about["budget"]
    limits = [
        f"{budget['seconds']:g} s" if budget["seconds"] else "",
        f"{budget['steps']} steps" if budget["steps"] else "",
    ]
    limits.append(f"{budget['memory'] / 1e9:g} GB" if budget["memory"] else "")
    limits = [x for x in limits if x]
    parts = [f"backend {run.about['backend']['name']}", *([f"{', '.join(limits)} a task"] if limits else [])]
    if run.about.get("total"):
        parts.append(f"{run.about['total']:g} s for all tasks")
    workers = run.about["workers"]
    if workers is not None:
        parts.append(f"{workers} worker{'s' if workers != 1 else ''}")
    line = ", ".join([*parts, f"seed {run.about['seed']}"])
    return f'<h1>ttt run</h1><div class="soft">{escape(line)}</div><div class="facts">{boxes}</div>'


def reliability_svg(confidence: Sequence[float], right: Sequence[bool]) -> str:
    """Return a reliability diagram: per bin of confidence the share right, its area the number of answers."""
    size, margin = 220, 34
    scale = size - margin - 10

    def at(x: float, y: float) -> tuple[float, float]:
        return margin + scale * x, 10 + scale * (1 - y)

    (x0, y0), (x1, y1) = at(0, 0), at(1, 1)
    marks = []
    for c, r, n in reliability(confidence, right):
        x, y = at(c, r)
        radius = 3 + 16 * (n / max(1, len(confidence))) ** 0.5
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="#4f7cff" fill-opacity=".6"/>')
        marks.append(f'<text x="{x + radius + 2:.1f}" y="{y + 4:.1f}">{n}</text>')
    return (
        f'<svg width="{size + 30}" height="{size}" role="img" aria-label="reliability">'
        f'<line class="axis" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke-dasharray="4"/>'
        f'<line class="axis" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y0}"/>'
        f'<line class="axis" x1="{x0}" y1="{y0}" x2="{x0}" y2="{y1}"/>'
        f'<text x="{x0}" y="{y0 + 14}">0</text><text x="{x1 - 26}" y="{y0 + 14}">100 %</text>'
        f'<text x="{x0 + 52}" y="{y0 + 14}">confidence</text><text x="2" y="14">right</text>{"".join(marks)}</svg>'
    )


def _overview(tasks: Sequence[Task], results: Sequence[TaskResult], *, calibrated: bool) -> str:
    """Return the section on calibration, and on the tasks solved by kind and by stage."""
    right = [solved(t, r) is True for t, r in zip(tasks, results, strict=True)]
    claims = [r.confidence for r in results]
    means = []
    for name, wanted in (("solved", True), ("unsolved", False)):
        group = [c for c, r in zip(claims, right, strict=True) if r is wanted]
        if group:
            means.append(f"mean confidence of {name}: {sum(group) / len(group):.0%}")
    stages = dict.fromkeys(sorted(r.predictions[0].first.stage for r in results))
    by_stage = [(f"answered by {s}", [r.predictions[0].first.stage == s for r in results]) for s in stages]
    by_kind = [(name, [belongs(t) for t in tasks]) for name, belongs in KINDS]
    diagram = (
        f'<div>{reliability_svg(claims, right)}<p class="soft">{"<br>".join(means)}</p></div>' if calibrated else ""
    )
    title = "Confidence and kinds" if calibrated else "Kinds"
    return f'<h2>{title}</h2><div class="row">{diagram}{_shares(by_kind, right)}{_shares(by_stage, right)}</div>'


def _shares(groups: Sequence[tuple[str, list[bool]]], right: Sequence[bool]) -> str:
    """Return a table with a bar per group of tasks: how many are solved."""
    rows = []
    for name, members in groups:
        total = sum(members)
        if total:
            n = sum(r for r, m in zip(right, members, strict=True) if m)
            bar = f'<span class="bar"><i style="width:{100 * n / total:.0f}%"></i></span>'
            rows.append(f"<tr><td>{escape(name)}</td><td>{bar}</td><td>{n} of {total}</td></tr>")
    return f'<table class="shares">{"".join(rows)}</table>'


def _image(grid: Grid, title: str, *, truth: Grid | None = None) -> str:
    cell = max(6, min(18, 190 // max(grid.shape)))
    wrong = None if truth is None else differences(grid, truth)
    hit = truth is not None and same(grid, truth)
    # Where most cells are wrong, crosses would hide the answer and tell nothing.
    crossed = None if wrong is None or wrong.mean() > 0.5 else wrong
    data = base64.b64encode(png(grid_image(grid, cell, crossed))).decode()
    mark = "" if truth is None else ' class="hit"' if hit else ' class="miss"'
    words = "; ".join("".join(map(str, row)) for row in grid.tolist())
    picture = f'<img alt="{escape(title)}: {words}" src="data:image/png;base64,{data}">'
    return f"<figure{mark}><figcaption>{escape(title)}</figcaption>{picture}</figure>"


def _verdict(made: Grid, truth: Grid | None) -> str:
    """Return in words how an answer differs from the truth."""
    if truth is None:
        return ""
    if made.shape != truth.shape:
        return f", wrong: {made.shape[0]} x {made.shape[1]} instead of {truth.shape[0]} x {truth.shape[1]}"
    wrong = int(differences(made, truth).sum())
    return f", wrong in {wrong} of {truth.size} cells" if wrong else ", right"


def task_section(task: Task, result: TaskResult, *, first: bool, calibrated: bool) -> str:
    right = solved(task, result)
    kind, word = {True: ("solved", "solved"), False: ("wrong", "wrong"), None: ("open", "open")}[right]
    if result.status == "failed":
        kind, word = ("failed", "failed") if not right else ("solved", "solved")
    best = result.predictions[0].first
    why = f"{best.stage}: {best.why}" if best.why else best.stage
    cost = f"{result.cpu_seconds:.1f} CPU-s, {result.peak_memory / 1e6:.0f} MB"
    if result.peak_gpu_memory:
        cost += f", {result.peak_gpu_memory / 1e6:.0f} MB of GPU memory"
    if result.reason:
        cost += f", stopped by {result.reason}"
    share = (
        f'<span class="bar"><i style="width:{100 * result.confidence:.0f}%"></i></span>{result.confidence:.0%}'
        if calibrated
        else ""
    )
    pairs = [
        f'<div class="pair">{_image(p.input, f"train {i}")}<span>→</span>{_image(p.output, "output")}</div>'
        for i, p in enumerate(task.train)
        if p.output is not None
    ]
    answers = []
    for i, (pair, guess) in enumerate(zip(task.test, result.predictions, strict=True)):
        row = [_image(pair.input, f"test {i}")]
        for n, a in ((1, guess.first), (2, guess.second)):
            sure = f"{a.confidence:.0%} " if calibrated else ""
            row.append(
                _image(a.grid, f"attempt {n}: {sure}{a.stage}{_verdict(a.grid, pair.output)}", truth=pair.output)
            )
        if pair.output is not None:
            row.append(_image(pair.output, "truth"))
        answers.append(f'<div class="row answer">{"".join(row)}</div>')
    error = f'<p class="error">{escape(result.error)}</p>' if result.error else ""
    return (
        f'<details class="task"{" open" if first else ""}><summary><span class="mark {kind}">{word}</span>'
        f'<code>{escape(task.id)}</code><span>{share}</span><span class="why">{escape(why)}</span>'
        f'<span class="cost">{escape(cost)}</span></summary><div class="body">{error}'
        f'<div class="row">{"".join(pairs)}</div>{"".join(answers)}</div></details>'
    )
