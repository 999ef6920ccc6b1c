"""Any model to ternary, int8 or fp16: by rule, by calibration, by measured sensitivity."""

from __future__ import annotations

from ternary._quantization.convert import quantize, to_int8
from ternary._quantization.half import to_fp16
from ternary._quantization.layer_costs import rules_by_sensitivity, sensitivity
from ternary._quantization.recipe import Recipe
from ternary._quantization.report import LayerReport, Report

__all__ = ["LayerReport", "Recipe", "Report", "quantize", "rules_by_sensitivity", "sensitivity", "to_fp16", "to_int8"]
