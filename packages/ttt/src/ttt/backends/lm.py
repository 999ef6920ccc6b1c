"""The `lm` backend: a local Hugging Face causal language model with a LoRA adapter per task."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ttt._budget import Clock
from ttt.backends._adapter import Adaptation, LoraSettings, TTTAdapter
from ttt.backends._model_service import MemoryProfile, ModelService, check_model_folder, choose_device, load_model
from ttt.backends._sharing import on_this_node, published
from ttt.checkpoint import CheckpointStore
from ttt.errors import InvalidBackendError, MissingExtraError
from ttt.values import Progress, Task

__all__ = ["Adaptation", "LmBackend", "LoraSettings", "MemoryProfile", "ModelService", "TTTAdapter"]


@dataclass(frozen=True)
class LmBackend:
    """Adapts the model in folder `model` to each task; `lora` holds fields of `LoraSettings`.

    With `share` the base weights are loaded once per machine and mapped by every task's process (extra `zerocopy`);
    The run sets `shared` to a reference to them.

    Example:
        >>> from ttt.backends.lm import LmBackend
        >>> LmBackend(model="my-model", lora={"steps": 8}).name
        'lm'
    """

    model: str = ""
    device: str = "auto"
    lora: dict[str, Any] = field(default_factory=dict)
    share: bool = False
    shared: Any = field(default=None, repr=False)
    name: str = "lm"

    def __post_init__(self) -> None:
        """Refuse settings without a model, or unknown LoRA settings."""
        if not self.model:
            raise InvalidBackendError(
                "lm needs model: the folder of a saved causal language model (--set model=FOLDER)"
            )
        try:
            LoraSettings(**self.lora)
        except TypeError as error:
            raise InvalidBackendError(f"lm: lora: {error}") from error

    def preflight(self) -> None:
        """Check device, model folder and extras; loads nothing."""
        choose_device(self.device)
        check_model_folder(Path(self.model))
        for extra in ("transformers", "peft"):
            if importlib.util.find_spec(extra) is None:
                raise MissingExtraError(f'the lm backend needs {extra}: pip install "pentad-ttt[lm]"')

    @contextmanager
    def sharing(self) -> Iterator[LmBackend]:
        """Yield the backend for processes started within the block, see `ttt._backend.sharing`."""
        if self.shared is not None:
            with on_this_node(self.shared) as ref:
                yield replace(self, shared=ref)
        elif self.share:
            with published(lambda: load_model(Path(self.model), choose_device(self.device))) as ref:
                yield replace(self, shared=ref)
        else:
            yield self

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Load the model, adapt it, decode every test input under several views."""
        store = None if workdir is None else CheckpointStore(workdir / "adapter", kind="lm")
        settings = LoraSettings(**self.lora)
        with (
            ModelService(self.model, self.device, self.shared) as service,
            TTTAdapter(service, settings).adapted(task, clock, store) as adaptation,
        ):
            for n, answers in enumerate(adaptation.predict(clock), 1):
                yield Progress(answers, "lm", clock.steps_done, n / settings.prediction_views)
