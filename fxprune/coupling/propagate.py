"""Propagation of channel fields over a graph to a fixpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from fxprune.coupling import contract, moves  # noqa: F401 (their rules register on import)
from fxprune.coupling.blocks import equal_rows
from fxprune.coupling.flow import RULES, Flow, argument
from fxprune.coupling.partition import Partition
from fxprune.coupling.unify import pointwise, unknown
from fxprune.types import Axis, Field

aten = torch.ops.aten


@dataclass
class Births:
    """The parameters and buffers of a graph with the fresh fields that they are born with.

    canonical: for each attribute of the graph the first name of the same tensor.
    tensors: each tensor once, by its first name.
    fields: a fresh field per axis.
    """

    canonical: dict[str, str]
    tensors: dict[str, Tensor]
    fields: dict[str, tuple[Field, ...]] = field(default_factory=dict)


def propagate(gm: fx.GraphModule, births: Births, partition: Partition) -> Flow:
    """Run every op on the fields until nothing more is joined; the last pass is returned."""
    padding: dict[tuple[fx.Node, int, int], Tensor] = {}
    while True:
        flow = Flow(partition, padding=padding)
        for node in gm.graph.nodes:
            flow.values[node] = _value(flow, node, births)
        if partition.settle():
            continue
        if flow.constrained:
            live = [partition.canonical(item.ids) for fields in births.fields.values() for item in fields]
            equal_rows(partition, flow.constrained, axes_of_units(live))
        if not partition.settle():
            return flow


def axes_of_units(axes: Iterable[Tensor]) -> dict[int, tuple[tuple[int, int], ...]]:
    """For each id the axes, by their number, that it lies on, and how often."""
    found: dict[int, list[tuple[int, int]]] = {}
    for index, ids in enumerate(axes):
        units, counts = torch.unique(ids[ids != 0], return_counts=True)
        for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
            found.setdefault(unit, []).append((index, count))
    return {unit: tuple(places) for unit, places in found.items()}


def _value(flow: Flow, node: fx.Node, births: Births) -> object:
    """The fields on a node's value."""
    if node.op == "get_attr":
        name = births.canonical[str(node.target)]
        found = (flow.normalized(item.ids, (item.axis,)) for item in births.fields[name])
        return tuple(item for fields in found for item in fields)
    if node.op == "output":
        for source in node.all_input_nodes:
            flow.hold(flow.values[source], "an output of the network")
    if node.op != "call_function" or "val" not in node.meta:
        return ()
    if node.target in RULES:
        return RULES[node.target](flow, node)
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        mutates = node.target._schema.is_mutable
        return unknown(flow, node) if mutates else pointwise(flow, node)
    return unknown(flow, node)


def give_birth(gm: fx.GraphModule, names: tuple[str, ...], partition: Partition) -> Births:
    """A fresh field per axis of each tensor that the graph reads; for grouped convolutions one per group of filters."""
    first: dict[int, str] = {}
    everything = {**dict(gm.named_parameters(remove_duplicate=False)), **dict(gm.named_buffers(remove_duplicate=False))}
    for name in (*names, *everything):
        if name in everything:
            first.setdefault(id(everything[name]), name)
    births = Births({name: first[id(tensor)] for name, tensor in everything.items()}, {})
    groups = filter_groups(gm)
    for node in gm.graph.nodes:
        if node.op != "get_attr":
            continue
        tensor = attribute(gm, str(node.target))
        name = first.setdefault(id(tensor), str(node.target))
        births.canonical[str(node.target)] = name
        if isinstance(tensor, Tensor) and name not in births.tensors:
            births.tensors[name] = tensor
            births.fields[name] = tuple(_born(tensor, groups.get(node.name, 1), partition))
    return births


def _born(tensor: Tensor, groups: int, partition: Partition) -> list[Field]:
    fields = []
    for axis, size in enumerate(tensor.shape):
        if size == 1:
            continue
        view = [size if dim == axis else 1 for dim in range(tensor.ndim)]
        if axis == 1 and groups > 1:
            ids = partition.fresh(groups * size).reshape([groups, *view[1:]])
            fields.append(Field(ids.repeat_interleave(len(tensor) // groups, 0), axis))
        else:
            fields.append(Field(partition.fresh(size).reshape(view), axis))
    return fields


def filter_groups(gm: fx.GraphModule) -> Mapping[str, int]:
    """For each weight that is read by grouped convolutions alone, all with as many groups: how many."""
    found: dict[str, set[int]] = {}
    for node in gm.graph.nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                grouped = "conv" in str(node.target) and source is node.args[1]
                found.setdefault(source.name, set()).add(int(argument(node, "groups")) if grouped else 1)
    return {name: groups.pop() for name, groups in found.items() if len(groups) == 1}


def attribute(gm: fx.GraphModule, target: str) -> object:
    """The attribute of a GraphModule by its dotted name."""
    value: object = gm
    for part in target.split("."):
        value = getattr(value, part)
    return value


def held_axes(births: Births, partition: Partition, flow: Flow) -> dict[Axis, str]:
    """Each axis of a parameter on which nothing may shrink, with the reason."""
    held: dict[Axis, str] = {}
    for name, fields in births.fields.items():
        for item in fields:
            if not bool(partition.canonical(item.ids).any()):
                held[Axis(name, item.axis)] = partition.reason(item.ids) or "nothing in the graph can shrink it"
    return held
