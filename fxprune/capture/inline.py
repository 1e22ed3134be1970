"""Contexts inside a forward that change nothing where fxprune runs: their subgraphs become part of the graph."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx

from fxprune.calls import attribute
from fxprune.errors import CaptureError, describe

_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_GRADIENTS = torch.ops.higher_order.wrap_with_set_grad_enabled
_LEADING = {_AUTOCAST: 4, _GRADIENTS: 1}  # arguments before the subgraph


def inline_contexts(gm: fx.GraphModule) -> None:
    """Replaces, in place, calls of subgraphs by what is in them.

    That is right for switched gradients, and for autocast that is off, or is for a device on which nothing lies. Raises
    CaptureError where the graph calls any other graph: the analysis would not see inside.
    """
    for node in list(gm.graph.nodes):
        if node.target in _LEADING and _changes_nothing(node):
            _inline(gm, node)
    for node in [node for node in gm.graph.nodes if node.op == "get_attr"]:
        if not isinstance(attribute(gm, str(node.target)), fx.GraphModule):
            continue
        if node.users:
            calls = ", ".join(describe(user) for user in node.users)
            raise CaptureError(
                f"the model switches autocast, or branches, inside its forward ({calls}): take the context manager or "
                "the branch out of it"
            )
        gm.graph.erase_node(node)
        gm.delete_submodule(str(node.target))


def _changes_nothing(node: fx.Node) -> bool:
    if node.target is _GRADIENTS:
        return True
    device, _, enabled = node.args[:3]
    values = [source.meta.get("val") for source in node.all_input_nodes]
    return not enabled or all(value.device.type != device for value in values if isinstance(value, Tensor))


def _inline(gm: fx.GraphModule, node: fx.Node) -> None:
    """Puts the nodes of the subgraph that `node` calls in its place."""
    leading = next(count for target, count in _LEADING.items() if target is node.target)
    reference, operands = node.args[leading], node.args[leading + 1 :]
    assert isinstance(reference, fx.Node)
    inner = gm.get_submodule(str(reference.target))
    assert isinstance(inner, fx.GraphModule)
    inline_contexts(inner)
    placeholders = [item for item in inner.graph.nodes if item.op == "placeholder"]
    given = dict(zip(placeholders, operands, strict=True))
    with gm.graph.inserting_before(node):
        results = gm.graph.graph_copy(inner.graph, given)
    for user in list(node.users):
        if user.target is operator.getitem and isinstance(results, (tuple, list)):
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
            gm.graph.erase_node(user)
    if not isinstance(results, (tuple, list)):
        node.replace_all_uses_with(results)  # type: ignore[arg-type]
    gm.graph.erase_node(node)
