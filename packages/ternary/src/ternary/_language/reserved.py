"""Names that a program may not use, because generated code or torch's modules use them."""

from __future__ import annotations

import keyword

from ternary._language.functions import FUNCTIONS
from ternary._language.library import LAYERS

_GENERATED = frozenset(
    [
        "self",
        "torch",
        "nn",
        "functional",
        "Tensor",
        "super",
        "range",
        "int",
        "float",
        "bool",
        "str",
        "max",
        "min",
        "round",
        "make_divisible",
        "rotary",
        "ValueError",
        "None",
        "True",
        "False",
        "tuple",
        "list",
        "len",
    ]
) | {spec.ternary for spec in LAYERS.values() if spec.ternary}
# Attributes of torch.nn.Module, listed here so that checking needs no torch and has the same result everywhere.
_MODULE_ATTRIBUTES = frozenset(
    [
        "T_destination",
        "add_module",
        "apply",
        "bfloat16",
        "buffers",
        "call_super_init",
        "children",
        "compile",
        "cpu",
        "cuda",
        "double",
        "dump_patches",
        "eval",
        "extra_repr",
        "float",
        "forward",
        "get_buffer",
        "get_extra_state",
        "get_parameter",
        "get_submodule",
        "half",
        "ipu",
        "load_state_dict",
        "modules",
        "mtia",
        "named_buffers",
        "named_children",
        "named_modules",
        "named_parameters",
        "parameters",
        "register_backward_hook",
        "register_buffer",
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_load_state_dict_post_hook",
        "register_load_state_dict_pre_hook",
        "register_module",
        "register_parameter",
        "register_state_dict_post_hook",
        "register_state_dict_pre_hook",
        "requires_grad_",
        "set_extra_state",
        "set_submodule",
        "share_memory",
        "state_dict",
        "to",
        "to_empty",
        "train",
        "training",
        "type",
        "xpu",
        "zero_grad",
    ]
)


def why_reserved(name: str, *, member: bool = False) -> tuple[str, str]:
    """Return what is wrong with a name and what to do, or two empty strings; a `member` becomes an attribute."""
    if name in _GENERATED or keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in FUNCTIONS:
        return f"'{name}' is reserved", "choose another name"
    if name.startswith("_"):
        return f"'{name}' starts with an underscore", "drop the underscore"
    if member and name in _MODULE_ATTRIBUTES:
        return f"'{name}' is an attribute of every module", "choose another name"
    return "", ""
