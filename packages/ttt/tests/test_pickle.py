"""Errors and values cross processes whole: same type, message and attributes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
import ttt_test_crossing
from ttt_test_crossing import ERRORS, VALUES, plain

import ttt
from ttt import errors


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_values_survive_pickle(value: Any) -> None:
    """Every public value comes back equal."""
    assert plain(pickle.loads(pickle.dumps(value))) == plain(value)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_errors_survive_pickle(error: Exception) -> None:
    """Every public error keeps type, message and attributes."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_every_public_value_is_tried() -> None:
    """Whatever is added to the public errors and dataclasses is tried here."""
    assert {type(e).__name__ for e in ERRORS} == set(errors.__all__)
    classes = {n for n in ttt.__all__ if hasattr(getattr(ttt, n), "__dataclass_fields__")}
    assert classes <= {type(v).__name__ for v in VALUES}


def test_errors_and_values_cross_pools() -> None:
    """An executor and a pool hand on the error that was raised, and the values that were returned."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    program = [sys.executable, ttt_test_crossing.__file__]
    out = subprocess.run(program, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert out.stdout == f"all tried: {len(ERRORS)} {len(VALUES)}\n", out.stdout + out.stderr
