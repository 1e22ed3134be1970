"""The text that builds a module of torch.nn."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from fxprune.codegen.arguments import compact
from fxprune.codegen.expressions import Expressions

_FACTORY = {"device", "dtype", "_freeze", "_weight"}


def constructor(module: nn.Module) -> str:
    """The call that builds a module like this one: options at their default are left out.

    Modules of torch.nn keep each argument of their constructor as the attribute of the same name; where an argument
    only says whether a tensor exists, the tensor is that attribute.

    >>> constructor(nn.Conv2d(3, 8, 3, padding=1, bias=False))
    'nn.Conv2d(3, 8, 3, padding=1, bias=False)'
    """
    write = Expressions(None, {}).value
    given: list[str] = []
    for name, parameter in _parameters(type(module)).items():
        if name in _FACTORY or not hasattr(module, name):
            continue
        value = _argument(module, name)
        follows_kernel = name == "stride" and parameter.default is None and value == _argument(module, "kernel_size")
        if parameter.default is inspect.Parameter.empty:
            given.append(write(value))
        elif value != parameter.default and not follows_kernel:
            given.append(f"{name}={write(value)}")
    dtype = next((tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()), torch.float32)
    given += [f"dtype={dtype}"] if dtype != torch.float32 else []
    return f"nn.{type(module).__name__}({', '.join(given)})"


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The parameters of the constructor; those of the recurrent modules are behind `*args`."""
    if not issubclass(kind, nn.RNNBase):
        return dict(inspect.signature(kind).parameters)
    parameters = {**inspect.signature(nn.RNNBase).parameters}
    del parameters["mode"]
    if issubclass(kind, nn.RNN):
        parameters["nonlinearity"] = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
    return parameters


def _argument(module: nn.Module, name: str) -> Any:
    """The value that the constructor's argument had."""
    value = getattr(module, name)
    if name == "bias" and not isinstance(value, bool):
        return value is not None
    return compact(value) if isinstance(value, tuple) else value
