"""Devices that tracing wrote down: what is made in the forward goes where the data is."""

from __future__ import annotations

import torch
from torch import Tensor, fx


def follow_devices(graph: fx.Graph) -> None:
    """Replaces `torch.zeros(2, device="cpu")` by `torch.zeros(2, device=x.device)`, so that the network can move.

    Where x is a tensor of that device, alive at that point. A device that no tensor of the forward is on stays.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        device = node.kwargs.get("device")
        anchor = _anchor(node, device, order) if isinstance(device, torch.device) else None
        if anchor is not None:
            with graph.inserting_before(node):
                found = graph.call_function(getattr, (anchor, "device"))
            found.meta["val"] = device
            node.update_kwarg("device", found)


def _anchor(node: fx.Node, device: torch.device, order: dict[fx.Node, int]) -> fx.Node | None:
    """The latest tensor before `node` that is on the device, one that is read later, too, if there is one."""
    before = [item for item in order if order[item] < order[node] and item.op != "get_attr" and _lies_on(item, device)]
    alive = [item for item in before if any(order.get(user, -1) > order[node] for user in item.users)]
    return next(reversed(alive or before), None)


def _lies_on(node: fx.Node, device: torch.device) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.device == device
