"""Pin: what an op would read off a size that is about to shrink becomes an explicit argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.calls import argument, concrete, concrete_shape, dim_argument, source_of
from fxprune.coupling.reduce import reduced_dims
from fxprune.errors import RewriteError, describe
from fxprune.passes.base import COUPLING, DENSE, analysed, require_operators, state
from fxprune.types import Coupling

aten = torch.ops.aten


class Pin(NamedTuple):
    """How calls of one op are pinned.

    reads: whether a call reads a size, given the axes of its first argument that can shrink.
    rewrite: replaces the call's target and arguments.
    """

    reads: Callable[[fx.Node, Set[int]], bool]
    rewrite: Callable[[fx.Node], None]


@dataclass(frozen=True, eq=False)
class PinSizes(PassBase):
    """Replaces what an op reads off a size that can shrink by the number that the original has.

    `chunk(x, 2, 1)` becomes `split_with_sizes(x, [58, 58], 1)`, ends counted from the back become plain ones,
    `mean(x, 1)` becomes `sum(x, 1) * (1 / 64)`, and attention without a scale gets `scale=`.
    Only along axes that can shrink: there, equal parts of the original need not be equal parts of the result.
    heads: as in `analyze`.
    Postcondition: none of these is left on such an axis.
    """

    heads: bool = False

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite in place; `meta["val"]` and names stay. A graph that has been shrunk is left alone."""
        if DENSE in state(graph_module):
            return PassResult(graph_module, False)
        require_operators(graph_module, "PinSizes")
        coupling = analysed(graph_module, self.heads)
        state(graph_module)[COUPLING] = coupling  # pinning changes no field
        found = pinnable(graph_module, coupling)
        for node in found:
            _PINS[node.target].rewrite(node)
        graph_module.recompile()
        return PassResult(graph_module, bool(found))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Nothing is left to pin."""
        if DENSE in state(graph_module):
            return
        for node in pinnable(graph_module, state(graph_module)[COUPLING]):
            raise RewriteError(f"not pinned: {describe(node)}")


def pinnable(gm: fx.GraphModule, coupling: Coupling) -> list[fx.Node]:
    """The calls that read a size of an axis that can shrink."""
    found = []
    for node in gm.graph.nodes:
        if node.target in _PINS:
            shrinking = {item.axis for item in coupling.fields[source_of(node).name]}
            if shrinking and _PINS[node.target].reads(node, shrinking):
                found.append(node)
    return found


def _replace(node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> None:
    node.target, node.args, node.kwargs = target, args, kwargs


def _splits(node: fx.Node, shrinking: Set[int]) -> bool:
    return dim_argument(node) in shrinking


def _pin_split(node: fx.Node) -> None:
    axis = dim_argument(node)
    sizes = [concrete(part.shape[axis]) for part in node.meta["val"]]
    _replace(node, aten.split_with_sizes.default, node.args[0], sizes, argument(node, "dim"))


def _counts_from_the_back(node: fx.Node, shrinking: Set[int]) -> bool:
    start, end = (concrete(argument(node, name) or 0) for name in ("start", "end"))
    return dim_argument(node) in shrinking and min(start, end) < 0


def _pin_slice(node: fx.Node) -> None:
    source, axis, step = source_of(node), argument(node, "dim"), argument(node, "step")
    bounds = slice(argument(node, "start"), argument(node, "end"))
    first, last, _ = bounds.indices(concrete_shape(source)[axis])
    written = (argument(node, "src"),) if node.target is aten.slice_scatter.default else ()
    _replace(node, node.target, source, *written, axis, first, last, *((step,) if step != 1 else ()))


def _averages(node: fx.Node, shrinking: Set[int]) -> bool:
    return not shrinking.isdisjoint(reduced_dims(node))


def _pin_mean(node: fx.Node) -> None:
    source, dims = source_of(node), reduced_dims(node)
    with node.graph.inserting_before(node):
        total = node.graph.call_function(
            aten.sum.dim_IntList,
            (source, dims, argument(node, "keepdim", False)),
            {"dtype": dtype} if (dtype := argument(node, "dtype")) is not None else {},
        )
    total.meta = dict(node.meta)
    count = math.prod(concrete_shape(source)[dim] for dim in dims)
    _replace(node, aten.mul.Tensor, total, 1 / count)


def _scales_by_width(node: fx.Node, shrinking: Set[int]) -> bool:
    return argument(node, "scale") is None and len(concrete_shape(source_of(node))) - 1 in shrinking


def _pin_attention(node: fx.Node) -> None:
    node.update_kwarg("scale", concrete_shape(source_of(node))[-1] ** -0.5)


_PINS: dict[Any, Pin] = {
    aten.chunk.default: Pin(_splits, _pin_split),
    aten.split.Tensor: Pin(_splits, _pin_split),
    aten.split.sizes: Pin(_splits, _pin_split),
    aten.tensor_split.sections: Pin(_splits, _pin_split),
    aten.tensor_split.indices: Pin(_splits, _pin_split),
    aten.slice.Tensor: Pin(_counts_from_the_back, _pin_slice),
    aten.slice_scatter.default: Pin(_counts_from_the_back, _pin_slice),
    aten.mean.dim: Pin(_averages, _pin_mean),
    aten.mean.default: Pin(_averages, _pin_mean),
    aten.scaled_dot_product_attention.default: Pin(_scales_by_width, _pin_attention),
}
