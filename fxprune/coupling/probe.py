"""Whether an elementwise op gives zero where operands are zero: asked of the op itself, on a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.calls import concrete, tensor_arguments

_COUNT = 8  # as many random numbers of either sign for each operand that is not zero


def vanishes(node: fx.Node, zero: Sequence[bool]) -> bool:
    """Whether the call gives zeros, when the tensors among its arguments for which `zero` says so are zeros.

    A result that is not a number counts as not zero, and so does an op that cannot be tried.
    """
    tensors = tensor_arguments(node)
    return _tried(node, tuple(zip(tensors, zero, strict=True)))


@lru_cache(maxsize=4096)
def _tried(node: fx.Node, zero: tuple[tuple[fx.Node, bool], ...]) -> bool:
    generator = torch.Generator().manual_seed(0)
    probes = {tensor: _probe(tensor, is_zero, generator) for tensor, is_zero in zero}

    def value(argument: fx.Node) -> Any:
        return probes[argument] if argument in probes else concrete(argument)

    try:
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        with torch.no_grad():
            result = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return False
    return isinstance(result, Tensor) and not bool(result.any() | result.isnan().any())


def _probe(node: fx.Node, zero: bool, generator: torch.Generator) -> Tensor:
    dtype = node.meta["val"].dtype
    if zero:
        return torch.zeros(_COUNT, dtype=dtype)
    numbers = torch.randn(_COUNT, generator=generator, dtype=torch.float64) * 4
    return numbers > 0 if dtype is torch.bool else numbers.to(dtype)
