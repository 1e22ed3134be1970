"""Layers: the weights that the signal passes, and the share of each that given widths keep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxprune.calls import argument, attribute
from fxprune.types import Coupling, Field

aten = torch.ops.aten

# Operators that multiply by a weight, and what they call it.
WEIGHTED = {
    **{getattr(aten, f"conv{n}d").default: "weight" for n in (1, 2, 3)},
    **{getattr(aten, f"conv{n}d").padding: "weight" for n in (1, 2, 3)},
    aten.conv_transpose1d.default: "weight",
    aten.conv_transpose2d.input: "weight",
    aten.conv_transpose3d.input: "weight",
    aten.linear.default: "weight",
}


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight, and how its axes follow the widths of the groups.

    name: of the parameter.
    shape: of the original.
    calls: the nodes that multiply by it; the signal passes it as often.
    sides: for each axis along which channels leave, the share of the axis that each group has; what is missing to 1
        stays whatever the widths.
    """

    name: str
    shape: tuple[int, ...]
    calls: tuple[str, ...]
    sides: tuple[Mapping[str, float], ...]

    @property
    def weights(self) -> int:
        """Elements of the original."""
        return math.prod(self.shape)

    def density(self, kept: Mapping[str, float]) -> float:
        """The share of the weights that is left where each group keeps the share `kept` of its units."""
        return math.prod(
            1 + math.fsum(share * (kept.get(g, 1.0) - 1) for g, share in side.items()) for side in self.sides
        )

    @property
    def slopes(self) -> Counter[str]:
        """How the log of the density grows with the log of each group's width: exactly where one group has an axis for
        itself, and as a lower bound, the mean of the logs, where several share one."""
        found: Counter[str] = Counter()
        for side in self.sides:
            found.update(side)
        return found


def layers_of(gm: fx.GraphModule, coupling: Coupling) -> tuple[Layer, ...]:
    """The layers of a captured graph in the order of their first call, without those that make its outputs.

    In a convolutional network these are its convolutions. The classifier is left out, as in the paper: it costs, but no
    channel of its own is to be chosen.
    """
    first_names = {id(parameter): name for name, parameter in gm.named_parameters()}  # of a tied one
    calls: dict[str, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        weight = argument(node, WEIGHTED[node.target]) if node.target in WEIGHTED else None
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            name = first_names.get(id(attribute(gm, str(weight.target))), str(weight.target))
            calls.setdefault(name, []).append(node)
    last = _last({node for nodes in calls.values() for node in nodes})
    names = {name: nodes for name, nodes in calls.items() if not last.issuperset(nodes)} or calls
    return tuple(_layer(name, nodes, coupling) for name, nodes in names.items())


def _last(calls: set[fx.Node]) -> set[fx.Node]:
    """The calls behind which no other one comes."""
    before: set[fx.Node] = set()
    for node in calls:
        queue = [*node.all_input_nodes]
        while queue:
            source = queue.pop()
            if source not in before:
                before.add(source)
                queue += source.all_input_nodes
    return calls - before


def _layer(name: str, nodes: list[fx.Node], coupling: Coupling) -> Layer:
    weight = argument(nodes[0], WEIGHTED[nodes[0].target])
    sides = tuple(_shares(item, coupling) for item in coupling.param_fields.get(name, ()))
    return Layer(name, tuple(weight.meta["val"].shape), tuple(node.name for node in nodes), sides)


def _shares(item: Field, coupling: Coupling) -> dict[str, float]:
    """The share of the field's axis that each group has."""
    lines = item.ids.movedim(item.axis, -1)
    row: Tensor = lines.reshape(-1, lines.shape[-1])[0]
    starts = torch.tensor([group.offset for group in coupling.groups])
    home = torch.bucketize(row, starts, right=True)  # 0 for the permanent, else one more than the group's place
    counts = torch.bincount(home, minlength=len(starts) + 1)[1:].tolist()
    return {g.name: count / len(row) for g, count in zip(coupling.groups, counts, strict=True) if count}
