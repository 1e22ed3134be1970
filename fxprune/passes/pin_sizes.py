"""Pin: what an op would read off a size that is about to shrink becomes an explicit argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.coupling import analyze
from fxprune.coupling.flow import argument, concrete, concrete_shape, source_of
from fxprune.errors import RewriteError, describe
from fxprune.passes.base import COUPLING, state
from fxprune.types import Coupling

aten = torch.ops.aten
Pin = Callable[[fx.Node], tuple[Any, tuple[Any, ...]]]


@dataclass(frozen=True, eq=False)
class PinSizes(PassBase):
    """Replaces `chunk(x, 2, 1)` by `split_with_sizes(x, [58, 58], 1)`, and ends counted from the back by plain ones.

    Only along axes that can shrink: there, equal parts of the original need not be equal parts of the result.
    Postcondition: no `chunk`, equal `split` or negative slice is left on such an axis.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite in place; `meta["val"]` and names stay."""
        coupling = analyze(graph_module)
        state(graph_module)[COUPLING] = coupling  # pinning changes no field
        found = pinnable(graph_module, coupling)
        for node in found:
            node.target, node.args = _PINS[node.target](node)
            node.kwargs = {}
        graph_module.recompile()
        return PassResult(graph_module, bool(found))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Nothing is left to pin."""
        for node in pinnable(graph_module, state(graph_module)[COUPLING]):
            raise RewriteError(f"not pinned: {describe(node)}")


def pinnable(gm: fx.GraphModule, coupling: Coupling) -> list[fx.Node]:
    """The calls that read a size of an axis that can shrink."""
    found = []
    for node in gm.graph.nodes:
        if node.target in _PINS:
            source = source_of(node)
            axis = argument(node, "dim") % len(concrete_shape(source))
            shrinks = any(item.axis == axis for item in coupling.fields[source.name])
            if shrinks and _PINS[node.target](node) != (node.target, node.args):
                found.append(node)
    return found


def _split(node: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    axis = argument(node, "dim")
    sizes = [concrete(part.shape[axis]) for part in node.meta["val"]]
    return aten.split_with_sizes.default, (node.args[0], sizes, axis)


def _slice(node: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    source, axis = source_of(node), argument(node, "dim")
    size = concrete_shape(source)[axis]
    start, end, step = (argument(node, name) for name in ("start", "end", "step"))
    whole = start in (None, 0) and (end is None or end >= size)
    if whole or min(start or 0, end or 0) >= 0:
        return node.target, node.args
    first, last, _ = slice(start, end).indices(size)
    return node.target, (source, axis, first, last, *((step,) if step != 1 else ()))


_PINS: dict[Any, Pin] = {
    aten.chunk.default: _split,
    aten.split.Tensor: _split,
    aten.split.sizes: _split,
    aten.slice.Tensor: _slice,
}
