"""Packing: exact inverses for every shape, the byte formats as written, and refusal of everything else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ternary.errors import PackedDataError, TernaryError, TernaryValueError
from ternary.packing import pack_2bit, pack_base3, unpack_2bit, unpack_base3

FORMATS = [pytest.param(pack_2bit, unpack_2bit, 4, id="2bit"), pytest.param(pack_base3, unpack_base3, 5, id="base3")]

shapes = st.lists(st.integers(0, 13), min_size=1, max_size=4)


@st.composite
def ternary_tensors(draw: st.DrawFn) -> torch.Tensor:
    """An int8 tensor of any small shape, empty dimensions included, with values from {-1, 0, 1}."""
    shape = draw(shapes)
    seed = draw(st.integers(0, 2**31))
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


@pytest.mark.parametrize(("pack", "unpack", "per_byte"), FORMATS)
class TestRoundTrip:
    """What goes in comes out, in the promised shape."""

    @given(values=ternary_tensors())
    def test_unpack_is_the_inverse_of_pack(self, pack, unpack, per_byte, values) -> None:
        """Every shape, empty ones included, comes back bit for bit."""
        packed = pack(values)
        assert packed.dtype == torch.uint8
        assert packed.shape == (*values.shape[:-1], -(-values.shape[-1] // per_byte))
        back = unpack(packed, values.shape[-1])
        assert back.dtype == torch.int8
        assert torch.equal(back, values)

    @given(data=st.data())
    def test_pack_is_the_inverse_of_unpack(self, pack, unpack, per_byte, data) -> None:
        """Bytes that unpack at all pack to the same bytes: no two byte strings mean the same values."""
        k = data.draw(st.integers(0, 17))
        packed = torch.tensor(
            [data.draw(st.lists(st.integers(0, 255), min_size=n, max_size=n)) for n in [-(-k // per_byte)]]
        )
        packed = packed.to(torch.uint8)
        try:
            values = unpack(packed, k)
        except PackedDataError:
            return
        assert torch.equal(pack(values), packed)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float16, torch.bfloat16, torch.float32])
    def test_any_real_dtype_packs_alike(self, pack, unpack, per_byte, dtype) -> None:
        """The dtype that carries the values does not change the bytes."""
        values = torch.tensor([[-1, 0, 1, 1, 0, -1, -1]])
        assert torch.equal(pack(values.to(dtype)), pack(values.to(torch.int8)))

    def test_strided_input(self, pack, unpack, per_byte) -> None:
        """A transposed view packs as its contiguous copy does."""
        values = torch.randint(-1, 2, (7, 9), dtype=torch.int8).T
        assert torch.equal(pack(values), pack(values.contiguous()))

    @pytest.mark.parametrize("bad", [7.0, -2.0, 0.5, float("nan"), float("inf"), float("-inf")])
    def test_values_outside_the_set_are_refused(self, pack, unpack, per_byte, bad) -> None:
        """Nothing is rounded or clipped into the set, NaN least of all."""
        values = torch.zeros(3, 5)
        values[1, 2] = bad
        with pytest.raises(TernaryValueError, match="1 of 15 values"):
            pack(values)

    @pytest.mark.parametrize(
        "bad", [torch.tensor(1), torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.complex64)]
    )
    def test_tensors_that_cannot_hold_ternary_values(self, pack, unpack, per_byte, bad) -> None:
        """A scalar, booleans and complex numbers are refused by name."""
        with pytest.raises(TernaryValueError):
            pack(bad)

    def test_wrong_size_dtype_or_count(self, pack, unpack, per_byte) -> None:
        """Bytes that do not fit k are refused, by the package's own error and as ValueError."""
        packed = pack(torch.zeros(2, 8, dtype=torch.int8))
        for data, k in [(packed, 3), (packed, 99), (packed.int(), 8), (packed[0, 0], 4), (packed, -1)]:
            with pytest.raises(PackedDataError) as caught:
                unpack(data, k)
            assert isinstance(caught.value, TernaryError)
            assert isinstance(caught.value, ValueError)


class TestByteFormats:
    """The bytes that docs/packing-format.md promises."""

    def test_2bit_little_end_first(self) -> None:
        """The first value sits in the lowest two bits; filling is the code of zero."""
        values = torch.tensor([-1, 0, 1, 0, 1], dtype=torch.int8)
        assert pack_2bit(values).tolist() == [0b01_10_01_00, 0b01_01_01_10]

    def test_base3_lowest_digit_first(self) -> None:
        """The first value is the lowest digit; filling is the digit of zero."""
        values = torch.tensor([-1, 0, 1, 0, 1, 1], dtype=torch.int8)
        assert pack_base3(values).tolist() == [0 + 1 * 3 + 2 * 9 + 1 * 27 + 2 * 81, 2 + 3 + 9 + 27 + 81]

    def test_the_largest_base3_byte(self) -> None:
        """Five ones are 242, and 243 is no value."""
        assert pack_base3(torch.ones(5, dtype=torch.int8)).tolist() == [242]
        with pytest.raises(PackedDataError, match="243"):
            unpack_base3(torch.tensor([243], dtype=torch.uint8), 5)

    def test_2bit_code_three_is_no_value(self) -> None:
        """The fourth code means damage."""
        with pytest.raises(PackedDataError, match="code 3"):
            unpack_2bit(torch.tensor([0b11], dtype=torch.uint8), 4)

    @pytest.mark.parametrize(("unpack", "byte"), [(unpack_2bit, 0b00_01_01_01), (unpack_base3, 0)])
    def test_filling_is_checked(self, unpack, byte) -> None:
        """A filling other than zeros says that k or the bytes are wrong."""
        with pytest.raises(PackedDataError, match="filling"):
            unpack(torch.tensor([byte], dtype=torch.uint8), 3)

    def test_sizes(self) -> None:
        """2 bits a weight are 1/16 of float32; base 3 is 1/20."""
        values = torch.zeros(64, 320, dtype=torch.int8)
        assert pack_2bit(values).numel() * 16 == values.numel() * 4
        assert pack_base3(values).numel() * 20 == values.numel() * 4
