"""Hints for words and signs from PyTorch, Keras and Python that this language writes in another way."""

from __future__ import annotations

__all__ = ["argument_hint", "name_hint", "sign_hint"]

_LAYERS = {
    "Dense": "write Linear(inputs, outputs)",
    "Sequential": "write the layers as a list: [a, b, c]",
    "ModuleList": "write the layers as a list, or repeat(n) Layer(...)",
    "Conv2D": "write Conv2d(inputs, outputs, kernel)",
    "Conv1D": "write Conv1d(inputs, outputs, kernel)",
    "DepthwiseConv2D": "write Conv2d(channels, channels, kernel, groups=channels)",
    "MaxPooling2D": "write MaxPool2d(kernel)",
    "AveragePooling2D": "write AvgPool2d(kernel)",
    "GlobalAveragePooling2D": "write global_avg_pool(x) in forward",
    "AdaptiveAvgPool2d": "write global_avg_pool(x) in forward",
    "BatchNormalization": "write BatchNorm2d(features) or BatchNorm1d(features)",
    "LayerNormalization": "write LayerNorm(features)",
    "Activation": "write the activation as a layer, such as ReLU()",
    "Softmax": "write softmax(x) in forward",
    "Relu": "write ReLU()",
    "MultiheadAttention": "write attention(query, key, value) in forward, with Linear layers for the projections",
    "Module": "write model Name(...) { ... }",
    "Input": "inputs stand in the signature: forward(x: float[N, 4]) -> float[N, 4]",
    "LSTM": "this language has no recurrent layers",
    "GRU": "this language has no recurrent layers",
    "RNN": "this language has no recurrent layers",
}
_FUNCTIONS = {
    "view": "write reshape(x, [sizes])",
    "cat": "write concat([x, y], dim=1)",
    "concatenate": "write concat([x, y], dim=1)",
    "permute": "write transpose(x, first, second)",
    "swapaxes": "write transpose(x, first, second)",
    "unsqueeze": "write reshape(x, [sizes]) with a size of 1",
    "squeeze": "write reshape(x, [sizes]), or select(x, dim, 0)",
    "matmul": "write a @ b",
    "bmm": "write a @ b",
    "add": "write a + b",
    "mul": "write a * b",
    "dropout": "make a member Dropout(p) and apply it",
    "scaled_dot_product_attention": "write attention(query, key, value, causal=false)",
    "adaptive_avg_pool2d": "write global_avg_pool(x)",
    "range": "write repeat(n) Layer(...)",
}
_VALUES = {
    "True": "write true",
    "False": "write false",
    "None": "there is no None; leave the argument out",
    "self": "members are named without self",
    "nn": "layers are named without nn, such as Linear(64, 10)",
    "torch": "functions are named without torch, such as relu(x)",
    "F": "functions are named without F, such as relu(x)",
    "functional": "functions are named without functional, such as relu(x)",
    "keras": "layers are named without keras, such as Linear(64, 10)",
    "layers": "layers are named without layers, such as Linear(64, 10)",
    "np": "sizes are plain arithmetic; there are no modules",
    "math": "sizes are plain arithmetic; there are no modules",
}
_STATEMENTS = {
    "class": "write model Name(...) { ... } or layer Name(...) { ... }",
    "def": "write forward(x: float[N, 4]) -> float[N, 4] { ... } without def",
    "import": "nothing is imported: every layer and function is built in",
    "from": "nothing is imported: every layer and function is built in",
    "for": "there are no loops: write repeat(n) Layer(...)",
    "while": "there are no loops: write repeat(n) Layer(...)",
    "super": "there is no constructor: members stand directly in the braces",
    "__init__": "there is no constructor: parameters stand after the model's name",
    "assert": 'write require condition, "message"',
    "const": "write let name = value",
    "var": "write let name = value",
    "print": "programs print nothing",
    "Tensor": "write the type with its dimensions, such as float[N, 4]",
}
_SIGNS = {
    ":": "blocks stand in braces: { ... }",
    ".": "names have no dots: write Linear(...) and relu(x), and members without self",
    "&": "write 'and'",
    "|": "write 'or'",
    "!": "write 'not'",
    "^": "there are no powers: write a product",
    "'": "strings are written with double quotes",
    "**": "there are no powers: write a product",
    "{": "sizes and layers stand in a list: [ ... ]",
    "(": "write one number, or sizes as a list: [ ... ]",
}
_ARGUMENTS = {
    "kernel_size": "kernel",
    "in_channels": "inputs",
    "out_channels": "outputs",
    "in_features": "inputs",
    "out_features": "outputs",
    "units": "outputs",
    "filters": "outputs",
    "num_embeddings": "count",
    "input_dim": "count",
    "embedding_dim": "features",
    "output_dim": "features",
    "num_features": "features",
    "normalized_shape": "features",
    "strides": "stride",
    "use_bias": "bias",
    "rate": "p",
    "is_causal": "causal",
    "axis": "dim",
    "start_dim": "start",
    "epsilon": "eps",
}


def name_hint(name: str) -> str:
    """Return what to write instead of a name of another library, or an empty string."""
    if name.startswith("Ternary") and len(name) > len("Ternary"):
        return f"write ternary {name.removeprefix('Ternary')}(...)"
    return next((table[name] for table in (_LAYERS, _FUNCTIONS, _VALUES, _STATEMENTS) if name in table), "")


def argument_hint(name: str, known: list[str]) -> str:
    """Return how an argument of another library is called here, or an empty string."""
    if name == "activation":
        return "put the activation after the layer in a list: [Linear(64, 10), ReLU()]"
    here = _ARGUMENTS.get(name, "")
    return f"it is called '{here}' here" if here in known else ""


def sign_hint(text: str) -> str:
    """Return what to write instead of a sign or word that no statement takes, or an empty string."""
    return _SIGNS.get(text, "") or name_hint(text)
