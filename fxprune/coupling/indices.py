"""Constant indices: which tensors say where another one is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxprune.calls import argument, attribute, concrete

aten = torch.ops.aten


def index_of(node: fx.Node) -> fx.Node | None:
    """The lone index of a call that reads along one axis."""
    if node.target is aten.index.Tensor:
        indices = [entry for entry in argument(node, "indices") if entry is not None]
        return indices[0] if len(indices) == 1 else None
    if node.target in (aten.index_select.default, aten.gather.default):
        index: fx.Node = argument(node, "index")
        return index
    return None


def root_of(node: fx.Node) -> fx.Node:
    """The attribute or other node whose value this one only rearranges."""
    while node.op == "call_function":
        sources = [source for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor)]
        if len(sources) != 1:
            return node
        node = sources[0]
    return node


def index_roots(gm: fx.GraphModule) -> frozenset[str]:
    """Names of the tensors of one axis that are read as an index by one call, and by nothing else."""
    found = []
    for node in gm.graph.nodes:
        index = index_of(node)
        root = root_of(index) if index is not None else None
        if root is not None and root.op == "get_attr" and root.meta["val"].ndim == 1 and len(root.users) == 1:
            found.append(str(root.target))
    return frozenset(name for name in found if found.count(name) == 1)


def constant(node: fx.Node) -> Tensor | None:
    """The value of a node that depends on no input; None where it depends on one."""
    if node.op == "get_attr":
        value = attribute(node.graph.owning_module, str(node.target))
        return value if isinstance(value, Tensor) else None
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return None

    def known(source: fx.Node) -> Any:
        value = source.meta.get("val")
        return constant(source) if isinstance(value, Tensor) else concrete(value)

    values = {source: known(source) for source in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    return result if isinstance(result, Tensor) else None
