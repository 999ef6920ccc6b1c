"""The shape of a language model and its rotary frequencies, read from `config.json` and kept in the model file."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary.errors import ImportFormatError

__all__ = ["ModelConfig", "rotary_tables"]

Floats = NDArray[np.float32]

_ACTIVATIONS = ("silu", "relu2")
_MOST, _MOST_HEAD = 1 << 31, 1 << 14


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a ternary language model.

    Attributes:
        vocabulary: Number of tokens.
        hidden: Width of the hidden states.
        inner: Width of the feed-forward layer.
        layers: Number of decoder layers.
        heads: Query heads.
        kv_heads: Key and value heads; each serves `heads / kv_heads` query heads.
        head_size: Width of a head.
        context: Longest sequence that the model was made for.
        epsilon: Added to the mean square in norms.
        activation: "silu" (SwiGLU) or "relu2" (squared ReLU), of the gate.
        sub_norms: Whether attention's output and the feed-forward product have norms of their own (BitNet b1.58).
        tied: Whether the head is the embedding.
        bias: Whether q, k, v and o have biases.
        rope: Kind of rotary positions and its parameters, as `rope_parameters` of Hugging Face.
        eos: Tokens that end a text.
        bos: Token that starts a text, or None.

    Example:
        >>> from ternary.llm import ModelConfig
        >>> ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32).activation
        'silu'
    """

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context: int
    epsilon: float = 1e-5
    activation: str = "silu"
    sub_norms: bool = False
    tied: bool = False
    bias: bool = False
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    eos: tuple[int, ...] = ()
    bos: int | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that the decoder cannot run."""
        sizes = [getattr(self, name) for name in _SIZES]
        if any(type(size) is not int or not 0 < size < _MOST for size in sizes) or self.head_size > _MOST_HEAD:
            raise ImportFormatError(
                f"got sizes {dict(zip(_SIZES, sizes, strict=True))}; wanted whole numbers above 0, "
                f"and heads of at most {_MOST_HEAD}"
            )
        for name in ("hidden", "inner", "head_size"):
            if getattr(self, name) % 16:
                raise ImportFormatError(f"got {name} = {getattr(self, name)}; the decoder takes multiples of 16")
        if self.heads % self.kv_heads:
            raise ImportFormatError(f"got {self.heads} query heads for {self.kv_heads} key/value heads")
        if self.activation not in _ACTIVATIONS:
            raise ImportFormatError(
                f"got the activation {self.activation!r}; the decoder has {', '.join(_ACTIVATIONS)}"
            )
        if type(self.epsilon) not in (float, int) or not 0 <= self.epsilon < 1:
            raise ImportFormatError(f"got an epsilon of {self.epsilon}; wanted a small number, 0 or more")
        tokens = [*self.eos, *([] if self.bos is None else [self.bos])]
        if any(type(token) is not int for token in tokens) or not isinstance(self.rope, dict):
            raise ImportFormatError("got an eos or bos that is no token, or rotary parameters that are no mapping")
        _frequencies(self)

    @classmethod
    def from_hugging_face(cls, config: dict[str, Any]) -> ModelConfig:
        """Read a `config.json` of BitNet or Llama.

        Raises:
            ImportFormatError: The architecture is another one, or a value is missing or not supported.
        """
        kind = config.get("model_type")
        if kind not in ("bitnet", "llama"):
            raise ImportFormatError(f"got a model of type {kind!r}; this library runs 'bitnet' and 'llama'")
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            eos = config.get("eos_token_id")
            if config.get("mlp_bias"):
                raise ImportFormatError("got mlp_bias = true; biases in the feed-forward layer are not supported")
            return cls(
                vocabulary=int(config["vocab_size"]),
                hidden=hidden,
                inner=int(config["intermediate_size"]),
                layers=int(config["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_size=int(config.get("head_dim") or hidden // heads),
                context=int(config.get("max_position_embeddings", 2048)),
                epsilon=float(config.get("rms_norm_eps", 1e-6)),
                activation=str(config.get("hidden_act", "relu2" if kind == "bitnet" else "silu")),
                sub_norms=kind == "bitnet",
                tied=bool(config.get("tie_word_embeddings", False)),
                bias=bool(config.get("attention_bias", False)),
                rope=_rope(config, 500000.0 if kind == "bitnet" else 10000.0),
                eos=tuple(int(e) for e in (eos if isinstance(eos, list) else [] if eos is None else [eos])),
                bos=None if config.get("bos_token_id") is None else int(config["bos_token_id"]),
            )
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as e:
            if isinstance(e, ImportFormatError):
                raise
            raise ImportFormatError(f"config.json lacks a value or has a wrong one: {e!r}") from None

    def as_dict(self) -> dict[str, Any]:
        """Return the values for a model file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Make a configuration from the values of a model file."""
        known = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or not known >= values.keys():
            raise ImportFormatError(f"got the fields {sorted(values)}; a model's shape has {sorted(known)}")
        return cls(**{**values, "eos": tuple(values.get("eos", ()))})


_SIZES = ("vocabulary", "hidden", "inner", "layers", "heads", "kv_heads", "head_size", "context")


def _rope(config: dict[str, Any], theta: float) -> dict[str, Any]:
    """Return the rotary parameters of either form of `config.json`."""
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    given.setdefault("rope_type", given.pop("type", "default"))
    given.setdefault("rope_theta", config.get("rope_theta") or theta)
    return {k: v for k, v in given.items() if v is not None}


def _frequencies(config: ModelConfig) -> tuple[Floats, float]:
    """Return the angle per position of each pair of dimensions, and the factor of the tables."""
    with np.errstate(all="ignore"):
        inverse, factor = _unchecked_frequencies(config)
    if not bool(np.isfinite(inverse).all()) or not math.isfinite(factor):
        raise ImportFormatError(f"the rotary parameters {config.rope} lead to angles that are not finite")
    return inverse, factor


def _unchecked_frequencies(config: ModelConfig) -> tuple[Floats, float]:
    rope, size = config.rope, config.head_size
    kind = rope.get("rope_type", "default")
    try:
        if float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
            raise ImportFormatError("got partial_rotary_factor other than 1; heads are rotated whole")
        theta = float(rope["rope_theta"])
        exponent = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        power = np.float32(theta) ** exponent
        inverse = (np.float32(1.0) / power).astype(np.float32)
        if kind == "default":
            return inverse, 1.0
        if kind == "factors":
            return (inverse / np.asarray(rope["factors"], np.float32).reshape(size // 2)).astype(np.float32), 1.0
        factor = float(rope["factor"])
        if kind == "linear":
            return (inverse / np.float32(factor)).astype(np.float32), 1.0
        if kind == "llama3":
            return _llama3(rope, inverse, factor), 1.0
        if kind == "yarn":
            return _yarn(rope, power, factor, config)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as e:
        if isinstance(e, ImportFormatError):
            raise
        raise ImportFormatError(f"the rotary parameters {rope} lack a value or have a wrong one: {e!r}") from None
    raise ImportFormatError(f"got rotary positions of type {kind!r}; supported: default, linear, llama3, yarn")


def _llama3(rope: dict[str, Any], inverse: Floats, factor: float) -> Floats:
    """Scale low frequencies by the factor, keep high ones, and blend those between (Llama 3.1)."""
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    before = float(rope["original_max_position_embeddings"])
    length = 2 * math.pi / inverse
    smooth = ((before / length - low) / (high - low)).astype(np.float32)
    blended = (1 - smooth) * inverse / factor + smooth * inverse
    scaled = np.where(length > before / low, inverse / factor, inverse)
    between = (length <= before / low) & (length >= before / high)
    return np.where(between, blended, scaled).astype(np.float32)


def _yarn(rope: dict[str, Any], power: Floats, factor: float, config: ModelConfig) -> tuple[Floats, float]:
    """YaRN (arXiv 2309.00071): interpolate the frequencies below a ramp, keep those above it."""
    size, theta = config.head_size, float(rope["rope_theta"])
    before = float(rope.get("original_max_position_embeddings") or config.context)

    def dimension(rotations: float) -> float:
        return size * math.log(before / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(float(rope.get("beta_fast") or 32)), dimension(float(rope.get("beta_slow") or 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - low) / (high - low), 0, 1).astype(np.float32)
    keep = 1 - ramp
    inverse = (1.0 / (factor * power)) * (1 - keep) + (1.0 / power) * keep

    def attention(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    given = rope.get("attention_factor")
    mscale, mscale_all = rope.get("mscale"), rope.get("mscale_all_dim")
    if given is None and mscale and mscale_all:
        given = attention(float(mscale)) / attention(float(mscale_all))
    return inverse.astype(np.float32), float(attention(1.0) if given is None else given)


def rotary_tables(config: ModelConfig, positions: int) -> tuple[Floats, Floats]:
    """Return cosines and sines of shape (positions, head_size / 2)."""
    inverse, factor = _frequencies(config)
    angle = np.arange(positions, dtype=np.float32)[:, None] * inverse
    return (np.cos(angle) * np.float32(factor)).astype(np.float32), (np.sin(angle) * np.float32(factor)).astype(
        np.float32
    )
