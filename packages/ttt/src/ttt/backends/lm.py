"""The `lm` backend: a local Hugging Face causal language model with a LoRA adapter per task."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ttt._backend import Backend
from ttt._budget import Clock
from ttt._runs.records import data_digest
from ttt.backends._adapter import Adaptation, LoraSettings, TTTAdapter
from ttt.backends._model_service import (
    SYMBOL_TEXTS,
    Base,
    MemoryProfile,
    ModelService,
    check_gpu_memory,
    check_model_folder,
    choose_device,
    load_model,
    within_gpu_memory,
)
from ttt.backends._sharing import on_this_node, published
from ttt.checkpoint import CheckpointStore
from ttt.errors import InvalidBackendError, MissingExtraError
from ttt.values import Progress, Task

MODEL_FILES = {".safetensors", ".json", ".model", ".txt"}

__all__ = ["Adaptation", "Base", "LmBackend", "LoraSettings", "MemoryProfile", "ModelService", "TTTAdapter"]


@dataclass(frozen=True)
class LmBackend:
    """Adapts the model in folder `model` to each task; `lora` holds fields of `LoraSettings`.

    Prompts are written in the tokens that the model's own tokenizer has for the sixteen texts of `symbols`: ten
    colours, then the end of a row, before an input, before an output, the end of a grid, padding, and the beginning.

    With `share` the base weights are loaded once per machine and mapped by every task's process (extra `zerocopy`);
    The run sets `shared` to a reference to them.

    With `service` a worker process loads the model once and solves one task after another; each brings its adapter and
    removes it. Without it every task has a process of its own, which loads the model. The answers are the same.

    `base` takes the place of `model`: an object that loads the model in each process, such as one that maps the weights
    that a server has published (see `Base`).

    `gpu_memory`, such as "16GB", is what PyTorch may allocate on a GPU for one task; None is all of it.

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
    symbols: tuple[str, ...] = SYMBOL_TEXTS
    gpu_memory: str | None = None
    service: bool = True
    base: Base | None = None
    name: str = "lm"

    def __post_init__(self) -> None:
        """Refuse settings without a model, or unknown LoRA settings."""
        if not self.model and self.base is None:
            raise InvalidBackendError(
                "lm needs model: the folder of a saved causal language model (--set model=FOLDER)"
            )
        if self.base is not None and (self.model or self.share or not isinstance(self.base, Base)):
            raise InvalidBackendError(
                f"lm: base: got {self.base!r:.80}, model {self.model!r} and share {self.share}; wanted an object with "
                "a method load, without model and share"
            )
        if self.model and Path(self.model).is_dir():  # worker processes and nodes may have another working folder
            object.__setattr__(self, "model", str(Path(self.model).resolve()))
        object.__setattr__(self, "symbols", tuple(self.symbols))
        if len(set(self.symbols)) != len(SYMBOL_TEXTS) or not all(isinstance(s, str) for s in self.symbols):
            raise InvalidBackendError(f"lm: symbols: got {self.symbols!r}, wanted {len(SYMBOL_TEXTS)} different texts")
        for name in ("share", "service"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidBackendError(f"lm: {name}: got {getattr(self, name)!r}, wanted true or false")
        try:
            LoraSettings(**self.lora)
        except TypeError as error:
            raise InvalidBackendError(f"lm: lora: {error}") from error

    def preflight(self) -> None:
        """Check device, model folder, GPU memory and extras; loads nothing."""
        choose_device(self.device)
        if self.base is None:
            check_model_folder(Path(self.model))
        self.check_gpu_tasks(1)
        for extra in ("transformers", "peft"):
            if importlib.util.find_spec(extra) is None:
                raise MissingExtraError(f'the lm backend needs {extra}: pip install "pentad-ttt[lm]"')

    def check_gpu_tasks(self, tasks: int) -> None:
        """Check that as many copies of the weights fit into a GPU; what a base of its own takes is not known."""
        if self.base is None:
            check_gpu_memory(Path(self.model), choose_device(self.device), self.gpu_memory, tasks)

    def identity(self) -> Any:
        """Return the SHA-256 of each file of the model; empty where this machine does not have it."""
        if self.base is not None:
            own = getattr(self.base, "identity", None)
            return None if own is None else own()
        return data_digest(p for p in Path(self.model).glob("*") if p.suffix in MODEL_FILES)

    def uses_gpu(self) -> bool:
        """Return whether the device may be a GPU."""
        return self.device == "auto" or self.device.startswith("cuda")

    def memory_needed(self) -> int:
        """Return the bytes of the weights in a task's process: none where they are shared, on a GPU, or of a base."""
        if self.share or self.base is not None or choose_device(self.device).type == "cuda":
            return 0
        return sum(p.stat().st_size for p in Path(self.model).glob("*.safetensors"))

    @contextmanager
    def sharing(self) -> Iterator[LmBackend]:
        """Yield the backend for processes started within the block, see `ttt._backend.sharing`."""
        if self.base is not None and hasattr(self.base, "on_this_node"):
            with self.base.on_this_node() as here:
                yield replace(self, base=here)
        elif self.shared is not None:
            with on_this_node(self.shared) as ref:
                yield replace(self, shared=ref)
        elif self.share:
            with published(lambda: load_model(Path(self.model), choose_device(self.device))) as ref:
                yield replace(self, shared=ref)
        else:
            yield self

    def stays_loaded(self) -> bool:
        """Return whether one process solves several tasks with the model loaded once."""
        return self.service and type(self).solve is LmBackend.solve  # a subclass has its own way

    @contextmanager
    def loaded(self) -> Iterator[Backend]:
        """Yield the backend with its model loaded, for one task after another."""
        with (
            within_gpu_memory(choose_device(self.device), self.gpu_memory),
            ModelService(self.base or self.model, self.device, self.shared, self.symbols) as service,
        ):
            yield _Loaded(self, service)

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Load the model, adapt it, decode every test input under several views."""
        with self.loaded() as loaded:
            yield from loaded.solve(task, clock, workdir)


@dataclass(frozen=True)
class _Loaded:
    """An `lm` backend with its model in memory."""

    backend: LmBackend
    service: ModelService
    name: str = "lm"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Adapt the model, decode every test input under several views, and remove the adapter."""
        store = None if workdir is None else CheckpointStore(workdir / "adapter", kind="lm")
        settings = LoraSettings(**self.backend.lora)
        with (
            within_gpu_memory(self.service.device, self.backend.gpu_memory),
            TTTAdapter(self.service, settings).adapted(task, clock, store) as adaptation,
        ):
            for n, answers in enumerate(adaptation.predict(clock), 1):
                yield Progress(answers, "lm", clock.steps_done, n / settings.prediction_views)
        self.service.free_cache()
