"""How a call of an ATen operator is spelled in ordinary PyTorch: an operator, a Tensor method, an F or torch function.

RULES holds what needs a rule of its own, one short function each (see codegen/rules.py). Everything else follows from
the operator's name: methods for what people write as methods, then torch.nn.functional, then torch, whose functions
have the operator's own arguments. An operator without a spelling stays as it is.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from types import GetSetDescriptorType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._ops import OpOverload

from fxprune.calls import bound_arguments
from fxprune.codegen.arguments import compact, defaults

Arguments = Mapping[str, Any]


class Spelling(NamedTuple):
    """A call as an fx node holds it: a function, or the name of a method of the first argument."""

    target: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Rule = Callable[[Arguments], Spelling | None]
RULES: dict[OpOverload, Rule] = {}

# What people write as a method of the tensor; those in _SIZES take their sizes one by one.
_SIZES = {"view", "reshape", "permute", "expand", "repeat"}
_METHODS = _SIZES | {
    *("chunk", "split", "unbind", "mean", "sum", "amax", "amin", "transpose", "unsqueeze", "squeeze", "contiguous"),
    *("clone", "detach", "t", "to", "type_as", "view_as", "expand_as", "roll", "unfold"),
    *("masked_fill", "clamp", "flip", "repeat_interleave", "unflatten", "new_zeros", "new_ones", "size", "argmax"),
}

_OPERATORS: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "pow": operator.pow,
    "matmul": operator.matmul,
    "bitwise_and": operator.and_,
    "bitwise_or": operator.or_,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}

_BY_POSITION = {"dim", "dims", "start_dim", "end_dim"}
_REPEATED = {"kernel_size", "stride", "padding", "output_padding", "dilation", "output_size"}
_LONE = {"dim", "dims", "shifts"}

# Options of the kernels that no public function has.
_KERNEL_ONLY = {"cudnn_enabled", "cudnn_enable"}
_SCHEMA_NAMES = {"input": "self", "split_size_or_sections": "split_size"}


def rule(*operators: OpOverload) -> Callable[[Rule], Rule]:
    """Registers how to spell an operator whose name does not say it."""

    def register(spell: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, spell))
        return spell

    return register


def spell(node: fx.Node) -> Spelling | None:
    """The call of `node` in ordinary PyTorch; None where it has no spelling, or is not a call of an ATen operator."""
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return None
    a = bound_arguments(node)
    if target in RULES:
        return RULES[target](a)
    name = target._schema.name.removeprefix("aten::")
    given = _given(target, a)
    keyword_only = {argument.name for argument in target._schema.arguments if argument.kwarg_only}
    if name in _OPERATORS and not keyword_only & set(given):
        return Spelling(_OPERATORS[name], tuple(a[key] for key in list(a)[: 1 if name == "neg" else 2]), {})
    if name in _METHODS or (name.endswith("_") and hasattr(Tensor, name)):
        return _method(name, target, given)
    if (function := _public_function(name)) is not None:
        return _function(function, target, a)
    if isinstance(getattr(Tensor, name, None), GetSetDescriptorType):
        return Spelling(getattr, (given["self"], name), {})  # x.mT
    return _method(name, target, given) if hasattr(Tensor, name) else None


def _public_function(name: str) -> Callable[..., Any] | None:
    """The function of torch.nn.functional, torch or one of its parts that an operator's name stands for."""
    part, _, rest = name.partition("_")
    if part in {"linalg", "special", "fft"}:
        return getattr(getattr(torch, part), rest, None)
    modules = (torch, F) if name in {"sigmoid", "tanh"} else (F, torch)  # those two are deprecated in F
    found = (getattr(module, name, None) for module in modules if part)
    return next((function for function in found if callable(function)), None)


def _given(target: OpOverload, a: Arguments) -> dict[str, Any]:
    """The arguments that differ from the schema's defaults."""
    default = defaults(target)
    return {
        name: value
        for name, value in a.items()
        if name not in default or (value is not default[name] != value and (name, value) != ("pin_memory", False))
    }


def _method(name: str, target: OpOverload, given: dict[str, Any]) -> Spelling:
    first, *rest = given.values()
    if name in _SIZES and len(rest) == 1 and isinstance(rest[0], (list, tuple)):
        return Spelling(name, (first, *rest[0]), {})
    args, kwargs = _laid_out(target, given)
    return Spelling(name, args, kwargs)


def _function(function: Callable[..., Any], target: OpOverload, a: Arguments) -> Spelling | None:
    """The call of a public function of the operator's name; None where it lacks an argument that matters."""
    given = _given(target, a)
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # built in: the same schema
        return Spelling(function, *_laid_out(target, given))
    if any(item.kind is item.VAR_POSITIONAL for item in parameters.values()):  # F.max_pool2d and the like dispatch
        return Spelling(function, *_laid_out(target, given))
    by_name = {_SCHEMA_NAMES.get(name, name) if name not in a else name: item for name, item in parameters.items()}
    if any(name not in by_name and name not in _KERNEL_ONLY for name in given):
        return None
    ordered = {name: a[name] for name, item in by_name.items() if name in a and a[name] is not item.default != a[name]}
    return Spelling(function, *_laid_out(target, ordered, list(by_name)))


def _laid_out(
    target: OpOverload, given: Mapping[str, Any], order: list[str] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: tensors, dimensions and what is required by position, options by name."""
    schema = {argument.name: argument for argument in target._schema.arguments}
    order = order or list(schema)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, value in given.items():
        in_place = len(args) < len(order) and order[len(args)] == name and not kwargs and not schema[name].kwarg_only
        needed = not schema[name].has_default_value() or isinstance(value, fx.Node) or name in _BY_POSITION
        if in_place and needed:
            args.append(_sizes(name, value))
        else:
            kwargs[name] = _sizes(name, value)
    return tuple(args), kwargs


def _sizes(name: str, value: Any) -> Any:
    """Sizes as people write them: one number where all are equal, a tuple otherwise; a lone dimension as a number."""
    if name in _REPEATED:
        return compact(value)
    if not isinstance(value, (list, tuple)) or not all(type(item) is int or _is_number(item) for item in value):
        return value
    return value[0] if name in _LONE and len(value) == 1 else tuple(value)


def _is_number(value: Any) -> bool:
    """Whether this is a size that the forward computes."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), (int, torch.SymInt))
