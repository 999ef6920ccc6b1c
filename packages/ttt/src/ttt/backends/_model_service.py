"""Loads a local causal language model and frees it again, without changing process-wide state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import safe_open

from ttt._budget import parse_bytes, resident_bytes
from ttt.backends._celltext import SYMBOLS
from ttt.errors import InvalidBackendError, MemoryLimitError, MissingExtraError

SYMBOL_TEXTS = (*"0123456789", "\n", "I", "O", ";", "_", ":")
"""The texts of the sixteen symbols for a model with a tokenizer of its own; each must be one token.

Ten colours, then the ends of a row, before an input, before an output, the end of a grid, padding, and the beginning.
"""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")


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


def half_precision(device: torch.device) -> torch.autocast:
    """Return the context in which a network computes in bfloat16 on CUDA, and as it is elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@contextmanager
def within_gpu_memory(device: torch.device, limit: str | None) -> Iterator[None]:
    """Let PyTorch allocate at most `limit` of a GPU's memory in this process, which must be one task's own.

    Raises:
        MemoryLimitError: The work in the block needs more than the limit, or more than the GPU has left.
    """
    if limit is not None and device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(number).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, parse_bytes(limit) / total), number)
    try:
        yield
    except torch.OutOfMemoryError as error:
        allowed = f"gpu_memory allows {limit}; raise it" if limit else "use a larger GPU, fewer tasks per GPU"
        raise MemoryLimitError(
            f"{str(error).split('. GPU ')[0]}: the GPU's memory is full: {allowed}, or a smaller batch or model"
        ) from error


def check_gpu_memory(path: Path, device: torch.device, limit: str | None, tasks: int = 1) -> None:
    """Check that a model's weights, two bytes each, fit into a limit of GPU memory and `tasks` times into the GPU.

    Raises:
        InvalidBackendError: They do not.
        InvalidBudgetError: The limit is not a size.
    """
    room = None if limit is None else parse_bytes(limit)
    if device.type != "cuda":
        return
    total = int(torch.cuda.get_device_properties(device).total_memory)
    room = total // tasks if room is None else min(room, total // tasks)
    needed = 2 * sum(weights_in(file) for file in path.glob("*.safetensors"))
    if needed > room:
        raise InvalidBackendError(
            f"{path}: its weights take {needed} bytes of GPU memory, and a task may have {room}; raise gpu_memory, or "
            "use a smaller model, a larger GPU, or fewer tasks per GPU"
        )


def weights_in(file: Path) -> int:
    """Return how many numbers a safetensors file holds; only its header is read."""
    with safe_open(file, "pt") as opened:
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118 - no mapping


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


@runtime_checkable
class Base(Protocol):
    """A base model that loads itself, in place of a folder; any picklable object with this method.

    A dataclass may have two more. `on_this_node()` returns a context that is entered once per machine for the whole run
    and yields the base for the processes there, for example to keep shared weights mapped. `identity()` returns a JSON
    value that tells the weights from others, such as their digest, for the records of a run.

    Example:
        >>> import dataclasses
        >>> from ttt.backends.lm import Base, LmBackend
        >>> @dataclasses.dataclass(frozen=True)
        ... class Published:
        ...     name: str
        ...     def load(self):
        ...         return open_model(self.name)  # of your own
        >>> isinstance(Published("m"), Base), LmBackend(base=Published("m")).base.name
        (True, 'm')
    """

    def load(self) -> Any:
        """Return a causal language model behind transformers' interface, in a process that adapts it.

        A method `encode(text)` of it returns the tokens of a text; without one its vocabulary is the sixteen symbols. A
        method `keep_tokens(ids)` leaves it these tokens only, in this order; without one it is cut as transformers'
        models are, which takes float vectors.
        """
        ...


class ModelService:
    """One loaded model with its device and its sixteen token ids; use it as a context, which frees it at the end.

    Only safetensors are read, nothing is downloaded, and code that comes with a model is not run.

    Example:
        >>> from ttt.backends.lm import ModelService
        >>> with ModelService(saved_model, device="cpu") as service:
        ...     print(len(service.symbols))
        16
    """

    def __init__(
        self,
        path: str | Path | Base,
        device: str = "auto",
        shared: Any = None,
        texts: Sequence[str] = SYMBOL_TEXTS,
    ) -> None:
        """Load the model.

        Args:
            path: The folder of a saved causal language model, or a base that loads itself.
            device: `auto`, `cpu` or `cuda`.
            shared: A reference from `ttt.backends._sharing`; the weights are then mapped instead of read.
            texts: The texts of the sixteen symbols, for a model with a tokenizer.
        """
        self.texts: tuple[str, ...] = tuple(texts)
        self.path: Path | None = Path(path) if isinstance(path, str | Path) else None
        self.device: torch.device = choose_device(device)
        if isinstance(path, Base):
            self.model: Any = path.load()
        else:
            self.model = load_model(Path(path), self.device) if shared is None else shared.load(cached=False)
        self.tokens: torch.Tensor = self._symbols()
        self.symbols: torch.Tensor = self._cut(self.tokens)
        self.model.to(self.device)
        self.model.requires_grad_(False)
        self.model.eval()

    def _symbols(self) -> torch.Tensor:
        """Return the token id of each of the sixteen symbols, (16,) int64: as the model's own tokenizer writes them.

        Only a model of sixteen tokens may come without a tokenizer; its tokens are the symbols in ttt's order.
        """
        size, name = self.model.config.vocab_size, self.path or type(self.model).__name__
        encode, unknown = self._tokenizer()
        if encode is None:
            if size == SYMBOLS:
                return torch.arange(SYMBOLS)
            raise InvalidBackendError(f"{name}: has no tokenizer, and {size} tokens; save the tokenizer beside it")
        ids = [encode(text) for text in self.texts]
        bad = [t for t, i in zip(self.texts, ids, strict=True) if len(i) != 1 or i[0] == unknown or i[0] >= size]
        if bad or len({i[0] for i in ids}) != SYMBOLS:
            raise InvalidBackendError(
                f"{name}: its tokenizer does not write {bad or 'the symbols'} as single tokens of their own that "
                "the model knows; name sixteen other texts with the setting symbols"
            )
        return torch.tensor([i[0] for i in ids])

    def _tokenizer(self) -> tuple[Callable[[str], Sequence[int]] | None, int | None]:
        """Return what turns a text into tokens, and the token of unknown texts, each None where there is none."""
        if self.path is None:
            return getattr(self.model, "encode", None), None
        if not any((self.path / name).is_file() for name in TOKENIZER_FILES):
            return None, None
        tokenizer = _transformers().AutoTokenizer.from_pretrained(self.path, **LOCAL)
        return lambda text: tokenizer.encode(text, add_special_tokens=False), tokenizer.unk_token_id

    def _cut(self, symbols: torch.Tensor) -> torch.Tensor:
        """Leave the model the vectors of these tokens only; return their new ids.

        A model of 0.5B parameters has a fourth of them in its vocabulary, and the logits over 150,000 tokens would take
        more memory than all else.
        """
        keep_tokens = getattr(self.model, "keep_tokens", None)
        if keep_tokens is not None:
            keep_tokens(symbols.tolist())
        else:
            self._cut_vectors(symbols)
        self.model.config.tie_word_embeddings = False
        return torch.arange(len(symbols), device=self.device)

    def _cut_vectors(self, symbols: torch.Tensor) -> None:
        for module in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            for name in ("weight", "bias"):
                old = getattr(module, name, None)
                if old is not None:
                    setattr(module, name, torch.nn.Parameter(old.detach()[symbols].clone(), requires_grad=False))
            for name in ("num_embeddings", "out_features"):
                if hasattr(module, name):
                    setattr(module, name, len(symbols))
            module.padding_idx = None

    def layers(self) -> list[str]:
        """Return the names of all layers that an adapter can be put on, the tokens' vectors included."""
        kinds = (torch.nn.Linear, torch.nn.Embedding)
        return [name for name, module in self.model.named_modules() if isinstance(module, kinds)]

    def __enter__(self) -> ModelService:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and its GPU memory."""
        self.model = None
        self.free_cache()

    def free_cache(self) -> None:
        """Give the GPU memory that PyTorch holds for later back to other processes."""
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
        # Transformers 5 calls it activation checkpointing, and warns of the name before.
        kind = "activation" if hasattr(self.model, "activation_checkpointing_enable") else "gradient"
        if saving:
            getattr(self.model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        try:
            yield
        finally:
            if saving:
                getattr(self.model, f"{kind}_checkpointing_disable")()
            self.model.eval()

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return log probabilities over the sixteen symbols from logits over the model's vocabulary, in float32."""
        return torch.log_softmax(logits[..., self.symbols].float(), -1)
