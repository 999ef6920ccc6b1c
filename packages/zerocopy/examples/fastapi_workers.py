"""Serve a model by FastAPI from several worker processes that start together and share one copy of the weights.

uvicorn --app-dir packages/zerocopy/examples --workers 4 fastapi_workers:app
"""

from __future__ import annotations

import os
from typing import Any

import torch
from fastapi import FastAPI
from torch import nn

import zerocopy

torch.set_num_threads(1)


def build() -> nn.Module:
    """Build the model, in one of the workers."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(8)]).eval()


model = zerocopy.share("fastapi-example", build, directory=os.environ.get("EXAMPLE_DIRECTORY"))
app = FastAPI()


@app.post("/")
def predict(rows: list[list[float]]) -> dict[str, Any]:
    """Answer with the sum of the model's output per row, and with the worker's process id."""
    with torch.no_grad():
        return {"sums": model(torch.tensor(rows)).sum(1).tolist(), "worker": os.getpid()}
