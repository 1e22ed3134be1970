"""Reductions: sums, to which a removed channel adds nothing, and all that mixes an axis in another way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fxprune.calls import argument, concrete_shape, source_of, tensor_arguments
from fxprune.coupling.flow import Flow, rule
from fxprune.coupling.operand import Fields, broadcast_shape
from fxprune.errors import describe

aten = torch.ops.aten


@rule(aten.sum, aten.mean, aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten.norm.Scalar)
def summing(flow: Flow, node: fx.Node) -> Fields:
    """Sums, means (which are pinned to the original number of channels) and norms, which are sums of powers."""
    dims = reduced_dims(node)
    fields: Fields = flow.values[source_of(node)]
    order = argument(node, "ord", argument(node, "p", 2))
    mean = node.target in (aten.mean.dim, aten.mean.default)
    sizes = source_of(node).meta["val"].shape
    known = all(isinstance(sizes[dim], int) for dim in dims)
    if (order is not None and not 0 < order < float("inf")) or (mean and not known):
        fields = flow.fix(fields, dims, f"its width changes the result of {describe(node)}")
    rank = len(concrete_shape(source_of(node)))
    return flow.reduce(fields, dims, len(concrete_shape(node)) == rank, node)


@rule(aten.cosine_similarity.default)
def cosine(flow: Flow, node: fx.Node) -> Fields:
    """A sum of products over two norms: both operands must be zero where a channel is removed."""
    sources = tensor_arguments(node)
    shape = broadcast_shape(concrete_shape(source) for source in sources)
    fields = flow.unify([flow.operand(source) for source in sources], shape, node)
    return flow.reduce(fields, [argument(node, "dim") % len(shape)], False, node)


@rule(aten.softmax.int, aten.log_softmax.int, aten._softmax.default, aten._log_softmax.default, aten.cumsum.default,
      aten.cumprod.default, aten.logcumsumexp.default)  # fmt: skip
def mixing(flow: Flow, node: fx.Node) -> Fields:
    """Ops along an axis that keep it: there every position reads the others."""
    fields = flow.fix(flow.values[source_of(node)], reduced_dims(node), _mixed(node))
    zero = "cum" in str(node.target)
    return tuple(replace(item, zero=item.zero and zero) for item in fields)


@rule(aten.amax.default, aten.amin.default, aten.max.dim, aten.min.dim, aten.max.default, aten.min.default,
      aten.argmax.default, aten.argmin.default, aten.var, aten.std, aten.var_mean, aten.logsumexp.default,
      aten.prod, aten.any, aten.all, aten.median.dim)  # fmt: skip
def selecting(flow: Flow, node: fx.Node) -> Any:
    """Reductions that would change without some of their operands: nothing shrinks along what they read."""
    dims = reduced_dims(node)
    source, value = source_of(node), node.meta["val"]
    first = value[0] if isinstance(value, (list, tuple)) else value
    fields = flow.fix(flow.values[source], dims, _mixed(node))
    left = flow.reduce(fields, dims, first.ndim == len(concrete_shape(source)), node)
    if isinstance(value, (list, tuple)):  # the second is where it was found, or another statistic
        return [left, tuple(replace(item, zero=False) for item in left)]
    return left


def reduced_dims(node: fx.Node) -> list[int]:
    """The axes of the first argument that a reduction runs over; all where it names none."""
    rank = len(concrete_shape(source_of(node)))
    dims = argument(node, "dim", None)
    dims = list(range(rank)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return [dim % rank for dim in dims] if rank else []


def _mixed(node: fx.Node) -> str:
    return f"its width changes the result of {describe(node)}"
