"""What answers are worth: attempts, confidence, submissions, scores and evaluations."""

from __future__ import annotations

from ttt.results._calibration import (
    AS_CLAIMED,
    Calibration,
    Curve,
    calibration_error,
    fit_curve,
    read_calibration,
    reliability,
)
from ttt.results._comparison import Comparison, compare
from ttt.results._evaluate import Evaluation, calibration_text, evaluate
from ttt.results._merging import merged
from ttt.results._scoring import Score, score, solved, wilson
from ttt.results._selection import choose, distinct, fallbacks, recalibrated
from ttt.results._submission import Answers, read_submission, submission_text, write_submission

__all__ = [
    "AS_CLAIMED",
    "Answers",
    "Calibration",
    "Comparison",
    "Curve",
    "Evaluation",
    "Score",
    "calibration_error",
    "calibration_text",
    "choose",
    "compare",
    "distinct",
    "evaluate",
    "fallbacks",
    "fit_curve",
    "merged",
    "read_calibration",
    "read_submission",
    "recalibrated",
    "reliability",
    "score",
    "solved",
    "submission_text",
    "wilson",
    "write_submission",
]
