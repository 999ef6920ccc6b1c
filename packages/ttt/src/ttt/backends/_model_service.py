"""Loads a local causal language model and frees it again, without changing process-wide state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ttt._budget import resident_bytes
from ttt.backends._celltext import SYMBOLS
from ttt.errors import InvalidBackendError, MissingExtraError

SYMBOL_TEXTS = (*"0123456789", "\n", "I", "O", ";", "_", ":")
"""The text of the sixteen symbols for a model with a tokenizer of its own; each must be one token."""


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the requested device; `auto` is CUDA where available, else the CPU.

    Raises:
        InvalidBackendError: The device is unknown, or CUDA is requested and not available.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InvalidBackendError(f"device {wanted!r}: PyTorch has no such device; use auto, cpu or cuda") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InvalidBackendError(f"device {wanted!r}: PyTorch finds no CUDA device here; use 'cpu' or 'auto'")
        if (device.index or 0) >= torch.cuda.device_count():
            raise InvalidBackendError(f"device {wanted!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Set PyTorch's random state to `seed` within the block, and restore it afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True, slots=True)
class MemoryProfile:
    """Bytes: of the weights, resident in the process, and on the GPU now and at most.

    Example:
        >>> from ttt.backends.lm import MemoryProfile
        >>> MemoryProfile(weights=4_000_000, resident=300_000_000, gpu=0, gpu_peak=0).weights
        4000000
    """

    weights: int
    resident: int
    gpu: int
    gpu_peak: int


LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is downloaded, and code that comes with a model is not run."""


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError('the lm backend needs transformers: pip install "pentad-ttt[lm]"') from error
    return transformers


def check_model_folder(path: Path) -> None:
    """Check that a folder looks like a saved model, without loading it.

    Raises:
        InvalidBackendError: It has no configuration, or no weights as safetensors.
    """
    if not (path / "config.json").is_file():
        raise InvalidBackendError(f"{path}: no config.json; use the folder of a saved causal language model")
    if not any(path.glob("*.safetensors")):
        raise InvalidBackendError(f"{path}: no .safetensors file; save the model with save_pretrained")


def load_model(path: Path, device: torch.device) -> Any:
    """Read a causal language model from its safetensors into memory, in the number format that the device works in.

    Raises:
        InvalidBackendError: The folder does not hold such a model.
        MissingExtraError: Transformers is not installed.
    """
    transformers = _transformers()
    check_model_folder(path)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, dtype=dtype, **LOCAL)
    except (OSError, ValueError) as error:
        raise InvalidBackendError(f"{path}: cannot be loaded: {error}") from error


class ModelService:
    """One loaded model with its device and its sixteen token ids; use it as a context, which frees it at the end.

    Only safetensors are read, nothing is downloaded, and code that comes with a model is not run.

    Example:
        >>> from ttt.backends.lm import ModelService
        >>> with ModelService(saved_model, device="cpu") as service:
        ...     print(len(service.symbols))
        16
    """

    def __init__(self, path: str | Path, device: str = "auto", shared: Any = None) -> None:
        """Load the model.

        Args:
            path: The folder of a saved causal language model.
            device: `auto`, `cpu` or `cuda`.
            shared: A reference from `ttt.backends._sharing`; the weights are then mapped instead of read.
        """
        self.path: Path = Path(path)
        self.device: torch.device = choose_device(device)
        self.model: Any = load_model(self.path, self.device) if shared is None else shared.load()
        self.symbols: torch.Tensor = self._symbols()
        self.model.to(self.device)
        self.model.requires_grad_(False)
        self.model.eval()

    def _symbols(self) -> torch.Tensor:
        """Return the token id of each of the sixteen symbols, (16,) int64."""
        if self.model.config.vocab_size == SYMBOLS:
            return torch.arange(SYMBOLS, device=self.device)
        tokenizer = _transformers().AutoTokenizer.from_pretrained(self.path, **LOCAL)
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in SYMBOL_TEXTS]
        if any(len(i) != 1 for i in ids) or len({i[0] for i in ids}) != SYMBOLS:
            bad = [t for t, i in zip(SYMBOL_TEXTS, ids, strict=True) if len(i) != 1]
            raise InvalidBackendError(
                f"{self.path}: its tokenizer does not write {bad or 'the symbols'} as single tokens"
            )
        return torch.tensor([i[0] for i in ids], device=self.device)

    def __enter__(self) -> ModelService:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and its GPU memory."""
        self.model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def memory(self) -> MemoryProfile:
        """Return what the model and the process hold now."""
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        on_gpu = self.device.type == "cuda"
        gpu = torch.cuda.memory_allocated(self.device) if on_gpu else 0
        peak = torch.cuda.max_memory_allocated(self.device) if on_gpu else 0
        return MemoryProfile(weights, resident_bytes(), gpu, peak)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Prepare the model for training, with gradient checkpointing on a GPU; return it to inference afterwards."""
        saving = self.device.type == "cuda" and self.model.supports_gradient_checkpointing
        self.model.train()
        if saving:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            yield
        finally:
            if saving:
                self.model.gradient_checkpointing_disable()
            self.model.eval()

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return log probabilities over the sixteen symbols from logits over the model's vocabulary, in float32."""
        return torch.log_softmax(logits[..., self.symbols].float(), -1)
