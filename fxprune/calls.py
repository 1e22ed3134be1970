"""Reading the calls of an ATen graph: arguments by their names, sizes as numbers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from fxprune.errors import CaptureError, describe

Shape = tuple[int, ...]
RECURRENT = (
    torch.ops.aten.lstm.input,
    torch.ops.aten.gru.input,
    torch.ops.aten.rnn_tanh.input,
    torch.ops.aten.rnn_relu.input,
)
_REQUIRED = object()


def attribute(gm: object, name: str) -> Any:
    """The attribute of a module by its dotted name."""
    return operator.attrgetter(name)(gm)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a model are; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Each argument of a call of an operator by its schema name, defaults filled in; values are as in the graph."""
    assert isinstance(node.target, OpOverload)
    bound: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        else:
            bound[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return bound


def argument(node: fx.Node, name: str, missing: Any = _REQUIRED) -> Any:
    """The argument of an ATen call by its name in the schema, given or default; `missing` where the op has none."""
    bound = bound_arguments(node)
    if name not in bound and missing is _REQUIRED:
        raise KeyError(f"{node.target} has no argument {name}")
    return bound.get(name, missing)


def source_of(node: fx.Node) -> fx.Node:
    """The first argument of a call, which must be a node."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def tensor_arguments(node: fx.Node) -> list[fx.Node]:
    """The arguments of a call that are tensors, those inside lists included."""
    return [arg for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), Tensor)]


def concrete(size: Any) -> int:
    """A number as such: for a symbolic size, or a node that computes one, that of the example.

    Raises TypeError where it depends on the values of tensors.
    """
    if isinstance(size, fx.Node):
        size = size.meta["val"]
    hint: Any = size.node.hint if isinstance(size, torch.SymInt) else size
    return int(hint)


def concrete_shape(node: fx.Node) -> Shape:
    """The shape of a node's value on the example. Raises CaptureError where it depends on the values of tensors."""
    try:
        return tuple(concrete(size) for size in node.meta["val"].shape)
    except TypeError as error:
        raise CaptureError(
            f"the size of {describe(node)} depends on the values of tensors: use torch.where or a mask of fixed size"
        ) from error


def dim_argument(node: fx.Node, name: str = "dim") -> int:
    """The argument that names one dimension of the first argument, counted from the front."""
    return int(argument(node, name)) % max(1, len(concrete_shape(source_of(node))))


def state_of(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor is replaced or written into, as long as it is alive."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version
