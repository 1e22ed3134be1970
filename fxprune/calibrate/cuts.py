"""Where a network is one value wide."""

from __future__ import annotations

from torch import SymBool, SymFloat, SymInt, fx

from fxprune.calibrate.contraction import contractions


def block_outputs(gm: fx.GraphModule) -> list[str]:
    """The cut points from which a layer reads, or several nodes do: what comes out of blocks, behind their additions
    and activations, in a network that normalises before its layers as well as in one that does it after them."""
    sources = {item.source for item in contractions(gm).values()}
    forks = {node.name for node in gm.graph.nodes if sum(not _is_size(user) for user in node.users) > 1}
    return [name for name in cut_points(gm) if name in sources or name in forks]


def cut_points(gm: fx.GraphModule) -> tuple[str, ...]:
    """The nodes through which everything flows: after such a node, no later one reads anything before it.

    Parameters do not count, nor do sizes (a symbolic batch size is read everywhere).
    """
    nodes = [node for node in gm.graph.nodes if node.op in ("placeholder", "call_function") and not _is_size(node)]
    order = {node: position for position, node in enumerate(nodes)}
    end = len(nodes)
    readers = {node: [order.get(user, end) for user in node.users if not _is_size(user)] for node in nodes}
    last = {node: max(places, default=-1) for node, places in readers.items()}
    found = []
    reach = -1  # the last reader of anything before the node
    for position, node in enumerate(nodes):
        if reach <= position and last[node] > position and node.op == "call_function":
            found.append(node.name)
        reach = max(reach, last[node])
    return tuple(found)


def _is_size(node: fx.Node) -> bool:
    """Whether the node's value is a number."""
    return isinstance(node.meta.get("val"), (int, float, bool, SymInt, SymFloat, SymBool))
