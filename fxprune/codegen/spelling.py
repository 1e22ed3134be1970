"""How a call of an ATen operator is spelled in ordinary PyTorch: an operator, a Tensor method, an F or torch function.

RULES holds what needs a rule of its own, one short function each. Everything else follows from the operator's name:
methods for what people write as methods, then torch.nn.functional, then torch, whose functions have the operator's own
arguments. An operator without a spelling stays as it is.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._ops import OpOverload

from fxprune.codegen.arguments import compact, defaults
from fxprune.coupling.flow import bound_arguments

aten = torch.ops.aten
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
    *("masked_fill", "clamp", "repeat_interleave", "unflatten", "new_zeros", "new_ones", "size", "argmax"),
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
    return {name: value for name, value in a.items() if name not in default or value is not default[name] != value}


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
    if not isinstance(value, (list, tuple)) or not all(type(item) is int for item in value):
        return value
    return value[0] if name in _LONE and len(value) == 1 else tuple(value)


@rule(aten.slice.Tensor)
def slice_(a: Arguments) -> Spelling | None:
    """`x[:, 1:3]`."""
    if not isinstance(a["dim"], int) or a["dim"] < 0:
        return None
    whole = (slice(None),) * a["dim"]
    end = None if a["end"] == 2**63 - 1 else a["end"]
    step = None if a["step"] == 1 else a["step"]
    return Spelling(operator.getitem, (a["self"], (*whole, slice(a["start"] or None, end, step))), {})


@rule(aten.select.int)
def select(a: Arguments) -> Spelling | None:
    """`x[:, 0]`."""
    if a["dim"] < 0:
        return Spelling("select", (a["self"], a["dim"], a["index"]), {})
    index = (*(slice(None),) * a["dim"], a["index"])
    return Spelling(operator.getitem, (a["self"], index if a["dim"] else a["index"]), {})


@rule(aten.index.Tensor)
def index(a: Arguments) -> Spelling | None:
    """`x[:, index]`."""
    items = tuple(slice(None) if item is None else item for item in a["indices"])
    return Spelling(operator.getitem, (a["self"], items if len(items) > 1 else items[0]), {})


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def reversed_subtraction(a: Arguments) -> Spelling | None:
    """`1 - x`."""
    return Spelling(operator.sub, (a["other"], a["self"]), {}) if a["alpha"] == 1 else None


@rule(aten.lift_fresh_copy.default)
def lift_fresh_copy(a: Arguments) -> Spelling | None:
    """A constant's fresh copy: `x.clone()`."""
    return Spelling("clone", (a["self"],), {})


@rule(aten.constant_pad_nd.default)
def constant_pad(a: Arguments) -> Spelling | None:
    """`F.pad(x, (1, 1))`."""
    options = {"value": a["value"]} if a["value"] else {}
    return Spelling(F.pad, (a["self"], tuple(a["pad"])), options)


@rule(aten.embedding.default)
def embedding(a: Arguments) -> Spelling | None:
    """`F.embedding(indices, weight)`."""
    options = {"padding_idx": a["padding_idx"]} if a["padding_idx"] >= 0 else {}
    flags = {name: True for name in ("scale_grad_by_freq", "sparse") if a[name]}
    return Spelling(F.embedding, (a["indices"], a["weight"]), options | flags)


@rule(aten.split_with_sizes.default)
def split_with_sizes(a: Arguments) -> Spelling | None:
    """`x.split([2, 3], 1)`; `x.split(2, 1)` where all parts are equal."""
    sizes = a["split_sizes"]
    equal = all(type(size) is int for size in sizes) and len(set(sizes)) == 1
    return Spelling("split", (a["self"], sizes[0] if equal else list(sizes), a["dim"]), {})


@rule(aten._to_copy.default, aten.to.dtype_layout)
def to_copy(a: Arguments) -> Spelling | None:
    """`x.to(dtype=torch.float32)`."""
    options = {name: a[name] for name in ("dtype", "device") if a[name] is not None}
    return Spelling("to", (a["self"],), options) if options else Spelling("clone", (a["self"],), {})


def _adaptive_max_pool(function: Callable[..., Any], a: Arguments) -> Spelling | None:
    """`F.adaptive_max_pool2d(x, 1, return_indices=True)`: the operator gives the indices, too."""
    return Spelling(function, (a["self"], compact(a["output_size"])), {"return_indices": True})


rule(aten.adaptive_max_pool1d.default)(partial(_adaptive_max_pool, F.adaptive_max_pool1d))
rule(aten.adaptive_max_pool2d.default)(partial(_adaptive_max_pool, F.adaptive_max_pool2d))
rule(aten.adaptive_max_pool3d.default)(partial(_adaptive_max_pool, F.adaptive_max_pool3d))


@rule(aten.sym_size.int)
def sym_size(a: Arguments) -> Spelling | None:
    """`x.size(0)`."""
    return Spelling("size", (a["self"], a["dim"]), {})


@rule(aten.hardtanh.default)
def hardtanh(a: Arguments) -> Spelling | None:
    """`F.relu6(x)` or `F.hardtanh(x, -2, 2)`."""
    if (a["min_val"], a["max_val"]) == (0, 6):
        return Spelling(F.relu6, (a["self"],), {})
    return Spelling(F.hardtanh, (a["self"], a["min_val"], a["max_val"]), {})


def _interpolate(mode: str, a: Arguments) -> Spelling | None:
    """`F.interpolate(x, size=(7, 7), mode="bilinear")`."""
    factors = a["scale_factors"]
    if a["output_size"] is not None:
        options: dict[str, Any] = {"size": compact(a["output_size"])}
    else:
        options = {"scale_factor": factors[0] if len(set(factors)) == 1 else tuple(factors)}
    if mode != "nearest":
        options["mode"] = mode
    return Spelling(F.interpolate, (a["input"],), options | ({"align_corners": True} if a.get("align_corners") else {}))


for _mode, _operators in {
    "nearest": (aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec),
    "linear": (aten.upsample_linear1d.vec,),
    "bilinear": (aten.upsample_bilinear2d.vec,),
    "bicubic": (aten.upsample_bicubic2d.vec,),
    "trilinear": (aten.upsample_trilinear3d.vec,),
}.items():
    rule(*_operators)(partial(_interpolate, _mode))
