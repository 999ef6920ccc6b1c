"""Turn numpy columns and JSON into a model's arguments, and its answers into arrays and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def floating_dtype(model: Any) -> torch.dtype:
    """Return the dtype of a model's first floating point weight, or float32 without one."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    return next((weight.dtype for weight in parameters if weight.is_floating_point()), torch.float32)


def as_tensor(column: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a numpy column as a tensor of its own memory, floating point numbers in a dtype."""
    tensor = torch.from_numpy(np.array(column))  # a copy: Ray's batches may be read-only memory
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def as_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as an array, in float32 where numpy has no such dtype."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.numpy()


def _fields(answer: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(answer, Mapping):
        yield from ((str(name), value) for name, value in answer.items())
    elif dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        yield from ((field.name, getattr(answer, field.name)) for field in dataclasses.fields(answer))
    elif isinstance(answer, list | tuple):
        yield from ((str(index), value) for index, value in enumerate(answer))


def tensors_in(answer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) for the tensors of an answer: itself, or the fields of a mapping, dataclass or sequence."""
    if isinstance(answer, torch.Tensor):
        yield "", answer
        return
    for name, value in _fields(answer):
        for inner, tensor in tensors_in(value):
            yield f"{name}_{inner}" if inner else name, tensor


def as_json(answer: Any) -> Any:
    """Return an answer as what JSON knows, tensors and arrays as lists.

    Raises:
        TypeError: It holds something else.
    """
    if isinstance(answer, torch.Tensor):
        return as_array(answer).tolist()
    if isinstance(answer, np.ndarray | np.generic):
        return answer.tolist()
    if answer is None or isinstance(answer, str | int | float | bool):
        return answer
    if isinstance(answer, list | tuple) and not hasattr(answer, "_fields"):
        return [as_json(value) for value in answer]
    fields = dict(_fields(answer))
    if fields or isinstance(answer, Mapping):
        return {name: as_json(value) for name, value in fields.items() if value is not None}
    raise TypeError(f"a {type(answer).__name__} has no form in JSON")


def arguments_of(body: Any, dtype: torch.dtype) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments that the JSON body of a request stands for.

    Raises:
        ValueError: Lists of numbers are ragged.
        TypeError: `args` is no list, or `kwargs` no object.
    """
    if isinstance(body, dict) and body.keys() <= {"args", "kwargs"}:
        args, kwargs = body.get("args", []), body.get("kwargs", {})
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise TypeError("args is a list and kwargs an object")
    elif isinstance(body, dict):
        args, kwargs = [], body
    else:
        args, kwargs = [body], {}
    return [_argument(value, dtype) for value in args], {
        name: _argument(value, dtype) for name, value in kwargs.items()
    }


def _argument(value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, list):
        return value
    try:
        tensor = torch.tensor(value)
    except (TypeError, ValueError) as error:
        if any(isinstance(item, str | dict) for item in value):
            return value
        raise ValueError(str(error)) from error
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
