"""A published model comes back as it was: ties, views, dtypes, classes, flags; and what cannot, says so."""

from __future__ import annotations

import contextlib
import copy
import io
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zerocopy
from zerocopy import ModelRef
from zerocopy.errors import UnshareableError

Publish = Callable[..., ModelRef]


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors have equal metadata and, byte for byte, equal contents."""
    meta = [(t.dtype, t.shape, t.stride(), t.requires_grad, t.is_conj(), t.is_neg(), type(t)) for t in (left, right)]
    raw = [
        t.detach().resolve_conj().resolve_neg().contiguous().view(torch.uint8) if t.dim() else t for t in (left, right)
    ]
    return meta[0] == meta[1] and torch.equal(raw[0], raw[1])


def reload(model: Any, publish: Publish) -> Any:
    """Publish and load."""
    return publish(model).load(cached=False)


@pytest.mark.parametrize("name", ["simple_model", "large_model", "transformer_model"])
def test_outputs_are_bit_equal(name: str, request: pytest.FixtureRequest, publish: Publish) -> None:
    """Weights at 64-byte aligned addresses give the same bits as the original."""
    model = request.getfixturevalue(name)
    loaded = reload(model, publish)
    inputs = torch.randint(0, 100, (3, 7)) if name == "transformer_model" else torch.randn(3, model[0].in_features)
    assert torch.equal(loaded(inputs), model(inputs))
    assert all(p.data_ptr() % 64 == 0 for p in loaded.parameters())


def test_state_dict_is_the_same(transformer_model: nn.Module, publish: Publish) -> None:
    """Same keys in the same order, same values; a strict load works; a non-persistent buffer comes along."""
    loaded = reload(transformer_model, publish)
    ours, theirs = loaded.state_dict(), transformer_model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert loaded.scale == 0.5
    assert "scale" not in ours
    assert loaded.load_state_dict(theirs, strict=True).missing_keys == []


def test_ties_stay_ties(transformer_model: nn.Module, publish: Publish) -> None:
    """Two names of one Parameter are one Parameter again, stored once."""
    ref = publish(transformer_model)
    loaded = ref.load(cached=False)
    assert loaded.head.weight is loaded.embed.weight
    assert ref.nbytes == sum(
        t.untyped_storage().nbytes() for t in [*transformer_model.parameters(), transformer_model.scale]
    )
    assert len(list(loaded.parameters())) == len(list(transformer_model.parameters()))


def test_one_module_in_two_places(publish: Publish) -> None:
    """A module under two names is one module again."""
    layer = nn.Linear(4, 4)
    loaded = reload(nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)}), publish)
    assert loaded["a"] is loaded["b"][0]


def test_flags_survive(simple_model: nn.Module, publish: Publish) -> None:
    """requires_grad of every parameter and the train flag of every module are kept."""
    simple_model[0].weight.requires_grad_(False)
    simple_model[2].train()
    loaded = reload(simple_model, publish)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in simple_model.parameters()]
    assert [m.training for m in loaded.modules()] == [m.training for m in simple_model.modules()]


def test_gradients_flow(simple_model: nn.Module, publish: Publish) -> None:
    """Loaded weights are ordinary leaves: gradients arrive and equal the original's."""
    loaded = reload(simple_model, publish)
    inputs = torch.randn(5, 8)
    for model in (loaded, simple_model):
        model(inputs).sum().backward()
    pairs = zip(loaded.parameters(), simple_model.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)
    assert not any(p.is_inference() for p in loaded.parameters())


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex32,
    torch.complex64, torch.complex128, torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32,
    torch.int64,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, publish: Publish) -> None:
    """Every dtype comes back bit for bit."""
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (7 * dtype.itemsize,), dtype=torch.uint8)
    tensor = raw.view(dtype)
    loaded = reload({"t": tensor}, publish)["t"]
    assert loaded.dtype is dtype
    assert torch.equal(loaded.view(torch.uint8), raw)


VIEWS: dict[str, Callable[[], torch.Tensor]] = {
    "zero-dim": lambda: torch.tensor(3.5),
    "empty": lambda: torch.empty(0, 3),
    "channels_last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(3, 5).t(),
    "expanded": lambda: torch.randn(1, 4).expand(6, 4),
    "conj": lambda: torch.randn(4, dtype=torch.complex64).conj(),
    "neg": lambda: torch.randn(4, dtype=torch.complex64).conj().imag,
    "offset": lambda: torch.randn(100)[37:90],
    "step": lambda: torch.randn(10, 10)[1::3, ::2],
}


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_views(view: str, publish: Publish) -> None:
    """Strides, offsets, stride 0, conjugate and negative bits survive."""
    tensor = VIEWS[view]()
    assert same_bits(reload({"t": tensor}, publish)["t"], tensor)


def test_overlapping_views_are_stored_once(publish: Publish) -> None:
    """Two views of one storage share its bytes in the segment and after loading; unused bytes are left out."""
    whole = torch.arange(100_000, dtype=torch.float32)
    ref = publish({"a": whole[1000:3000], "b": whole[2000:4000]})
    loaded = ref.load(cached=False)
    assert torch.equal(loaded["a"][1000:], loaded["b"][:1000])
    assert loaded["a"].untyped_storage().data_ptr() == loaded["b"].untyped_storage().data_ptr()
    assert ref.nbytes <= 3000 * 4 + 64


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from(DTYPES),
    start=st.integers(0, 9),
)
def test_any_permuted_slice(shape: list[int], order: Any, dtype: torch.dtype, start: int) -> None:
    """Any permutation of any slice of any dtype survives."""
    count = max(1, int(torch.tensor(shape).prod())) if shape else 1
    raw = torch.randint(0, 2 if dtype is torch.bool else 250, ((count + start) * dtype.itemsize,), dtype=torch.uint8)
    tensor = raw.view(dtype)[start : start + (0 if 0 in shape else count)].reshape(shape)
    tensor = tensor.permute(order.sample(range(len(shape)), len(shape)))
    flat = zerocopy.flatten({"t": tensor})
    loaded = zerocopy.rebuild(flat.skeleton, [bytearray(block.bytes_view()) for block in flat.blocks])["t"]
    assert (loaded.shape, loaded.stride(), loaded.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
    assert bytes(loaded.contiguous().reshape(-1).view(torch.uint8).numpy()) == bytes(
        tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    )


class Scaled(nn.Parameter):
    """A Parameter subclass."""


class Tagged(torch.Tensor):
    """A tensor subclass without memory tricks."""


def test_tensor_subclasses_keep_their_class(publish: Publish) -> None:
    """Parameter subclasses, tensor subclasses, nn.Buffer and attributes set on a tensor survive."""
    model = nn.Module()
    model.weight = Scaled(torch.randn(3))
    model.weight.note = "kept"
    model.tagged = torch.randn(2).as_subclass(Tagged)
    model.buffer = nn.Buffer(torch.ones(2), persistent=False)
    loaded = reload(model, publish)
    assert type(loaded.weight) is Scaled
    assert loaded.weight.note == "kept"
    assert type(loaded.tagged) is Tagged
    assert list(loaded.state_dict()) == ["weight"]
    assert dict(loaded.named_buffers())["buffer"].tolist() == [1, 1]


class TwoParts(torch.Tensor):
    """A wrapper subclass whose value is the sum of two tensors."""

    @staticmethod
    def __new__(cls, high: torch.Tensor, low: torch.Tensor) -> TwoParts:
        """Make the wrapper, which has no memory of its own."""
        return torch.Tensor._make_wrapper_subclass(cls, high.shape, dtype=high.dtype)

    def __init__(self, high: torch.Tensor, low: torch.Tensor) -> None:
        self.high, self.low = high, low

    def __tensor_flatten__(self) -> tuple[list[str], str]:
        """Name the inner tensors and give the context."""
        return ["high", "low"], "context"

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, torch.Tensor], context: str, size: Any, stride: Any) -> TwoParts:
        """Make the wrapper from inner tensors."""
        assert context == "context"
        return cls(inner["high"], inner["low"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the sum."""
        if func is torch.ops.aten.detach.default:
            return cls(args[0].high, args[0].low)
        plain = torch.utils._pytree.tree_map(
            lambda x: x.high + x.low if isinstance(x, cls) else x, (args, kwargs or {})
        )
        return func(*plain[0], **plain[1])


def test_wrapper_subclass(publish: Publish) -> None:
    """A subclass with __tensor_flatten__ shares its inner tensors."""
    model = nn.Linear(4, 4)
    model.weight = nn.Parameter(TwoParts(torch.randn(4, 4), torch.randn(4, 4)), requires_grad=False)
    loaded = reload(model, publish)
    assert type(loaded.weight) is type(model.weight)
    assert torch.equal(loaded.weight.high, model.weight.high)
    inputs = torch.randn(2, 4)
    assert torch.equal(loaded(inputs), model(inputs))


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrizations(norm: str, publish: Publish) -> None:
    """Parametrized modules, which torch itself refuses to pickle, come back with their parametrization."""
    model = getattr(nn.utils.parametrizations, norm)(nn.Linear(4, 4)).eval()
    loaded = reload(model, publish)
    inputs = torch.randn(2, 4)
    assert torch.equal(loaded(inputs), model(inputs))
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert nn.utils.parametrize.is_parametrized(loaded, "weight")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=["weight", "spectral"])
def test_old_style_norms(norm: Any, publish: Publish) -> None:
    """The hook-based norms, whose weight is no leaf, work too."""
    model = norm(nn.Linear(4, 4)).eval()
    inputs = torch.randn(2, 4)
    expected = model(inputs)
    assert torch.equal(reload(model, publish)(inputs), expected)


def _double(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output * 2


def test_ordered_dicts() -> None:
    """Empty ones, as each module has several, ones with items or attributes, and subclasses come back as they were."""

    class Named(OrderedDict[str, torch.Tensor]):
        pass

    empty, full, noted, named = OrderedDict(), OrderedDict(b=torch.ones(3), a=1), OrderedDict(), Named(a=torch.ones(2))
    noted.note = torch.full((2,), 5.0)  # type: ignore[attr-defined]
    flat = zerocopy.flatten([empty, full, noted, named, empty])
    made = zerocopy.rebuild(flat.skeleton, [bytearray(block.bytes_view()) for block in flat.blocks])
    assert [type(each).__name__ for each in made] == ["OrderedDict"] * 3 + ["Named", "OrderedDict"]
    assert made[0] is made[4]
    assert made[0] == {}
    assert list(made[1]) == ["b", "a"]
    assert made[1]["b"].tolist() == [1, 1, 1]
    assert made[2].note.tolist() == [5, 5]
    assert made[3]["a"].tolist() == [1, 1]


def test_hooks(simple_model: nn.Module, publish: Publish) -> None:
    """Forward hooks travel, lambdas and closures among them."""
    factor = 3
    simple_model[0].register_forward_hook(_double)
    simple_model[3].register_forward_hook(lambda module, args, output: output * factor)
    inputs = torch.randn(2, 8)
    assert torch.equal(reload(simple_model, publish)(inputs), simple_model(inputs))


@pytest.mark.timeout(300)
def test_compiled_module(simple_model: nn.Module, publish: Publish) -> None:
    """A torch.compile wrapper comes back as one, over shared weights."""
    compiled = torch.compile(simple_model, backend="eager")
    inputs = torch.randn(2, 8)
    loaded = reload(compiled, publish)
    assert type(loaded) is type(compiled)
    assert list(loaded.state_dict()) == list(compiled.state_dict())
    assert torch.equal(loaded(inputs), simple_model(inputs))
    torch._dynamo.reset()


def test_what_cannot_be_shared_is_named(publish: Publish) -> None:
    """Meta, lazy, sparse, TorchScript and a lock: an error with the dotted path and a remedy, nothing left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases of TorchScript announce its end
        script = torch.jit.script(nn.Linear(2, 2))
        nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])  # announced as a prototype
    sparse = nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False)
    cases: list[tuple[Any, str]] = [
        (nn.Linear(2, 2, device="meta"), "publish_file"),
        (nn.LazyLinear(2), "once before publishing"),
        (nn.ParameterList([sparse]), "to_dense"),
        ([nested], "layout=torch.jagged"),
        (script, "the nn.Module that it was made from"),
        (nn.ModuleDict({"deep": nn.Linear(2, 2, device="meta")}), r"deep\.weight"),
    ]
    for inner, expected in cases:
        with pytest.raises(UnshareableError, match=rf"(?s)part\..*{expected}"):
            publish({"part": {"inner": inner}}, name="refused")
    model = nn.Linear(2, 2)
    model.guard = threading.Lock()
    with pytest.raises(UnshareableError, match=r"net\.guard: cannot be pickled"):
        publish(nn.ModuleDict({"net": model}))
    with pytest.raises(zerocopy.errors.UnknownNameError):
        zerocopy.current("refused")


@pytest.mark.slow  # torch.export takes seconds to import
@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torch_export_is_refused_and_the_remedy_works(publish: Publish, tmp_path: Path) -> None:
    """Its workers run it over shared weights, as the error says."""
    model = nn.Linear(4, 4).eval()
    program = torch.export.export(model, (torch.ones(2, 4),))
    for made in (program, program.module(), program.graph_module, torch.export.unflatten(program)):
        for published in (made, {"net": [made]}):
            with pytest.raises(UnshareableError, match=r"a program of torch\.export.*load_state_dict"):
                publish(published)
    torch.export.save(program, tmp_path / "model.pt2")
    weights = publish(dict(program.state_dict)).load()
    worker = torch.export.load(tmp_path / "model.pt2").module()
    worker.load_state_dict(weights, assign=True)
    assert torch.equal(worker(torch.ones(2, 4)), model(torch.ones(2, 4)))
    assert worker.weight.data_ptr() == weights["weight"].data_ptr()
    assert not zerocopy.written(weights)


def test_saved_size_is_the_same(transformer_model: nn.Module, publish: Publish) -> None:
    """Every storage is one of its own: saving a loaded model writes its weights, and not the whole segment for each."""
    sizes = []
    for model in (transformer_model, reload(transformer_model, publish)):
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        sizes.append(file.tell())
    assert abs(sizes[0] - sizes[1]) <= 64 * len(transformer_model.state_dict())


def test_copies_are_independent(simple_model: nn.Module, publish: Publish) -> None:
    """A deep copy of a loaded model has memory of its own."""
    loaded = reload(simple_model, publish)
    twin = copy.deepcopy(loaded)
    with torch.no_grad():
        twin[0].weight.zero_()
    assert torch.equal(loaded[0].weight, simple_model[0].weight)


def test_load_is_cached_while_the_model_exists(simple_model: nn.Module, publish: Publish) -> None:
    """The same object in one process; cached=False makes another over a mapping of its own."""
    ref = publish(simple_model)
    first = ref.load()
    assert ref.load() is first
    other = ref.load(cached=False)
    assert other is not first
    assert other[0].weight.data_ptr() != first[0].weight.data_ptr()


def test_handle_is_small(large_model: nn.Module, publish: Publish) -> None:
    """A reference is a few hundred bytes, whatever the model."""
    import pickle

    ref = publish(large_model)
    assert len(pickle.dumps(ref)) < 1000
    assert pickle.loads(pickle.dumps(ref)) == ref


def test_device(simple_model: nn.Module, publish: Publish, device: str) -> None:
    """A model published from a device loads onto a device with the same values."""
    ref = publish(simple_model.to(device))
    loaded = ref.load(device=device, cached=False)
    assert {p.device.type for p in loaded.parameters()} == {device}
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), simple_model.parameters(), strict=True))


class Warns(nn.Linear):
    """Says something each time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Warn and compute."""
        import warnings

        warnings.warn("from inside the model", UserWarning, stacklevel=2)
        return super().forward(x)


def test_warnings_stay_visible(publish: Publish) -> None:
    """Nothing that a model says is swallowed."""
    loaded = reload(Warns(2, 2), publish)
    with pytest.warns(UserWarning, match="from inside the model"):
        loaded(torch.ones(1, 2))


@pytest.mark.parametrize("ambient", ["inference", "no_grad", "meta", "float64", "fake", "strict"])
def test_loads_and_publishes_are_neutral(ambient: str, simple_model: nn.Module) -> None:
    """Whatever mode, default device or dtype is on, what is published and loaded is the same ordinary model."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    states: dict[str, Any] = {
        "inference": torch.inference_mode(),
        "no_grad": torch.no_grad(),
        "meta": torch.device("meta"),
        "fake": FakeTensorMode(),
        "strict": zerocopy.strict(simple_model),
        "float64": contextlib.nullcontext(),
    }
    if ambient == "float64":
        torch.set_default_dtype(torch.float64)
    try:
        with states[ambient]:
            ref = zerocopy.publish(simple_model)
            first = ref.load()
    finally:
        torch.set_default_dtype(torch.float32)
    assert ref.load() is first
    assert first[0].weight.dtype == torch.float32
    assert not any(tensor.is_inference() for tensor in first.state_dict().values())
    assert first[0].weight.requires_grad
    inputs = torch.randn(2, 8)
    first(inputs).sum().backward()
    assert first[0].weight.grad is not None
    assert torch.equal(first(inputs), simple_model(inputs))
    zerocopy.unpublish(ref)
