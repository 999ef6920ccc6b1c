"""Ray workers adapt to real ARC tasks and share one copy of the base weights; answers equal a single process's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adaptation import TellsMemory

import ttt

pytest.importorskip("ray")
transformers = pytest.importorskip("transformers")
TASKS = "arcagi1:training/a416b8f3,67a3c6ac"


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random causal language model with sixteen symbols, saved by transformers."""
    folder = tmp_path_factory.mktemp("base")
    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=16, num_key_value_heads=2, bos_token_id=15, eos_token_id=13, pad_token_id=14, **size
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("cluster")
def test_ray_workers_adapt_over_one_copy(base_model: Path, device: str, tmp_path: Path) -> None:
    """The submission equals a single process's byte for byte; each worker mapped the same file and wrote no page."""
    tasks = ttt.load(TASKS)

    def submission(share: bool, **where: object) -> tuple[str, ttt.Run]:
        lora = {"steps": 2, "rank": 4, "prediction_views": 1}
        backend = TellsMemory(str(base_model), device=device, share=share, lora=lora)
        run = ttt.run(tasks, backend=backend, budget="2 steps", **where)
        for _ in run:
            pass
        assert {result.error for result in run.results.values()} == {None}
        path = tmp_path / f"{share}.json"
        run.write_submission(path)
        return path.read_text(), run

    alone, _ = submission(False, workers=1)
    together, run = submission(True, workers=2, pool="ray")
    assert together == alone
    if device == "cpu":
        held = [json.loads(result.predictions[0].first.why) for result in run.results.values()]
        assert len({file for files in held for file in files}) == 1
        assert [written for files in held for written in files.values()] == [0] * len(held)
