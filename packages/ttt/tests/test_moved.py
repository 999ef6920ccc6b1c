"""Old import paths of public names work, and say where to import from now."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ttt._moved import MOVED

NAMES = {
    "ttt.augment": ("View", "SYMMETRIES", "leave_one_out", "random_views"),
    "ttt.backend": ("Backend", "named_backend"),
    "ttt.budget": ("Budget", "Clock"),
    "ttt.calibration": ("Calibration", "read_calibration"),
    "ttt.data": ("TaskSet", "load"),
    "ttt.evaluate": ("Evaluation", "evaluate"),
    "ttt.events": ("Event", "Finished", "Improved", "Started", "TaskResult"),
    "ttt.grid": ("solve",),
    "ttt.loader": ("Rejected",),
    "ttt.orchestrator": ("Run", "run"),
    "ttt.scoring": ("Score", "score"),
    "ttt.selection": ("choose", "distinct"),
    "ttt.submission": ("read_submission", "write_submission"),
}


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_path_works_and_warns(old: str) -> None:
    """The same objects under the old path and the public one; the warning names the latter, at the importing line."""
    new, public = MOVED[old]
    code = (
        "import importlib, warnings\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        f"    import {old} as old\n"
        f"    from {old} import {', '.join(NAMES[old])}\n"
        f"public = importlib.import_module({public!r})\n"
        f"assert all(getattr(old, n) is getattr(public, n) for n in {NAMES[old]!r})\n"
        f"assert importlib.import_module({new!r}).__name__ == {new!r}\n"
        f"print(len(seen), seen[0].category.__name__, 'from {public}. ' in str(seen[0].message), seen[0].filename)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.stdout.split() == ["1", "DeprecationWarning", "True", "<string>"], out.stdout + out.stderr


def test_all_moved_modules_are_tried() -> None:
    """A module that is added to the table is tried here."""
    assert set(NAMES) == set(MOVED)
