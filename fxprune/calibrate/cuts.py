"""Where a network is one value wide."""

from __future__ import annotations

from torch import SymBool, SymFloat, SymInt, fx


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
