"""Compile every Triton kernel ahead of time, without a GPU; print what each compute capability made of them.

Each line is a capability, the kernel, its shared memory in bytes, and the widest load from memory in bytes; or the
capability and the error that stopped it.
"""

from __future__ import annotations

import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ternary.runtime import _gpu as gpu
from ternary.runtime import _triton_kernels as kernels
from ternary.runtime._split import split_of

TYPES = {
    "x": "*fp32", "q": "*i8", "tiles": "*u8", "weight": "*u8", "words": "*i32", "surpluses": "*i32", "meeting": "*i32",
}  # fmt: skip
FLOATS = ("x_scales", "scale", "bias", "out", "peaks")
EVEN = ("n", "k", "k16", "per_part", "size", "channels")
WIDEST = (("cp.async.cg.shared.global", 16), ("ld.global.v4.b32", 16), ("ld.global.v2.b32", 8), ("ld.global", 4))


def widest_load(ptx: str) -> int:
    """Return the bytes of the widest load from memory."""
    return next((size for name, size in WIDEST if name in ptx), 0)


MEETING = r"relaxed\.add.*bar\.sync.*acq_rel\.add.*bar\.sync.*relaxed\.exch"


def meets_in_order(ptx: str) -> bool:
    """Whether a program adds its sums, then counts itself as one that releases them, and reads only after that."""
    return re.search(MEETING, ptx, re.DOTALL) is not None


def compile_for(capability: int, kernel: Any, cut: gpu.Cut, constants: tuple[Any, ...]) -> Any:
    """Compile a kernel whose pointers, channels and columns are multiples of 16, as those of large layers are."""
    names = kernel.arg_names[-len(constants) :]
    types = {name: TYPES.get(name, "*fp32" if name in FLOATS else "i32") for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in zip(names, constants, strict=True)}
    even = [name for name, kind in types.items() if kind[0] == "*" or name in EVEN]
    source = ASTSource(
        kernel,
        types | dict.fromkeys(names, "constexpr"),
        constexprs=values,
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in even},
    )
    options = {"num_warps": cut.warps, "num_stages": cut.stages, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def split_cuts() -> list[gpu.Cut]:
    """Return the cuts of rows whose columns programs share, from short to long parts."""
    found = {split.cut for tiles in (64, 160, 432, 2048) if (split := split_of(640, tiles, 132, wanted=True))}
    return sorted(found)


def ways() -> list[tuple[Any, gpu.Cut, tuple[Any, ...]]]:
    """Return each kernel with each of its cuts."""
    found: list[tuple[Any, gpu.Cut, tuple[Any, ...]]] = [
        (kernels.quantize_rows, gpu.QUANTIZE, gpu.QUANTIZE.sizes),
        (kernels.row_products, gpu.ROW, (True, *gpu.ROW.sizes, True)),
        *((kernels.split_row_products, cut, (True, *cut.sizes, True)) for cut in split_cuts()),
        (kernels.image_peaks, gpu.IMAGE, gpu.IMAGE.sizes),
        (kernels.quantize_images, gpu.IMAGE, (64, *gpu.IMAGE.sizes)),
        (kernels.convolve_depthwise, gpu.DEPTHWISE, (True, *gpu.DEPTHWISE.sizes)),
    ]
    found += [(kernels.many_products, cut, (True, *cut.sizes, True)) for cut in (gpu.FEW, gpu.SOME, gpu.MANY)]
    found += [(kernels.convolve, cut, (True, True, True, True, *cut.sizes, 64)) for cut in gpu.PLACES]
    by_column, grouped = (True, True, False, False), (True, False, True, False)
    found += [(kernels.convolve, gpu.PLACES[1], (*how, *gpu.PLACES[1].sizes, 32)) for how in (by_column, grouped)]
    return found


def main() -> None:
    """Compile for each capability until one kernel fails."""
    for capability in (70, 75, 80, 90, 120):
        try:
            for kernel, cut, constants in ways():
                made = compile_for(capability, kernel, cut, constants)
                if kernel is kernels.split_row_products and not meets_in_order(made.asm["ptx"]):
                    raise RuntimeError("the parts of a row do not meet in order")
                print(capability, kernel.__name__, made.metadata.shared, widest_load(made.asm["ptx"]))
        except Exception as error:
            print(capability, type(error).__name__)


if __name__ == "__main__":
    main()
