"""Settings of the `lm` and `vit` backends for a GPU, by name."""

from __future__ import annotations

from typing import Any

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "lm": (
        "lm",
        {
            "lora": {
                "rank": 32,
                "alpha": 32,
                "rslora": True,
                "embeddings": True,
                "schedule": "cosine",
                "learning_rate": 2e-4,
                "steps": 128,
                "batch": 2,
                "views": 64,
                "prediction_views": 8,
                "threshold": 0.1,
                "max_symbols": 8192,
            },
        },
    ),
    "vit": (
        "vit",
        {
            "shape": {"side": 32, "patch": 2, "width": 512, "heads": 8, "depth": 10},
            "batch": 32,
            "steps": 400,
            "learning_rate": 3e-4,
            "views": 32,
            "prediction_views": 32,
        },
    ),
}
"""The backend and the settings of each recipe; what the user sets comes after these.

`lm` follows the plan of "The LLM ARChitect" (Franzen, Disselhoff, Hartmann 2024), `vit` that of "ARC Is a Vision
Problem" (Hu et al. 2025). The numbers are ours: chosen from these papers' descriptions and sized on paper, not tuned.
"""
