"""The workflows: what they install, when they start, and what they may do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(workflow: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the jobs of a workflow by name."""
    yield from yaml.safe_load(workflow.read_text())["jobs"].items()


def commands(job: dict[str, Any]) -> list[str]:
    """Return the lines of shell that a job runs."""
    return [line.strip() for step in job["steps"] for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_only_the_gpu_job_installs_a_cuda_torch(workflow: Path) -> None:
    """Outside the GPU workflow `uv run` never syncs, and `uv pip install` asks for a CPU build."""
    for name, job in jobs(workflow):
        for line in commands(job):
            if workflow.stem == "gpu":
                continue
            assert "uv sync" not in line, (name, line)
            assert not re.search(r"\buv run (?!--no-sync |--no-project )", line), (name, line)
            assert "uv pip install" not in line or "--torch-backend cpu" in line, (name, line)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_have_few_rights_and_an_end(workflow: Path) -> None:
    """Each workflow starts without rights, each job has a time limit, and each action is pinned to a commit."""
    text = workflow.read_text()
    assert "\npermissions: {}\n" in text
    for name, job in jobs(workflow):
        assert job["timeout-minutes"] <= 120, name
    pins = re.findall(r"uses: \S+@(\S+)", text)
    assert all(re.fullmatch(r"[0-9a-f]{40}", pin) for pin in pins)


def test_tiers_end_within_their_time() -> None:
    """Integration jobs have 30 minutes, nightly ones 60 and a release's full validation 120."""
    limits = {path.stem: {name: job["timeout-minutes"] for name, job in jobs(path)} for path in WORKFLOWS}
    assert max(limits["ci"].values()) <= 30
    assert max(limits["nightly"].values()) <= 60
    assert limits["release"]["check"] <= 120


def test_a_label_restarts_nothing_and_a_person_approves_the_gpu() -> None:
    """Only the GPU workflow reacts to labels; it cancels nothing, and its job needs an approved environment."""
    for workflow in WORKFLOWS:
        triggers = yaml.safe_load(workflow.read_text())[True]
        request = (triggers or {}).get("pull_request") if isinstance(triggers, dict) else None
        assert ("labeled" in ((request or {}).get("types") or [])) is (workflow.stem == "gpu")
    gpu = yaml.safe_load((ROOT / ".github/workflows/gpu.yml").read_text())
    assert gpu["concurrency"]["cancel-in-progress"] is False
    assert gpu["jobs"]["cuda"]["environment"] == "gpu"


def test_the_required_job_waits_for_all_others() -> None:
    """`required` needs every other job of the workflow that checks changes."""
    found = dict(jobs(ROOT / ".github/workflows/ci.yml"))
    assert set(found["required"]["needs"]) == set(found) - {"required"}
