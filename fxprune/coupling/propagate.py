"""Propagation of channel fields over a graph to a fixpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.calls import argument, attribute, bound_arguments
from fxprune.coupling import joining, recurrent, reduce, reshape, slicing  # noqa: F401 (their rules register on import)
from fxprune.coupling.blocks import join_crossings
from fxprune.coupling.flow import RULES, Conflict, Flow
from fxprune.coupling.indices import index_roots
from fxprune.coupling.partition import Partition
from fxprune.coupling.unify import pointwise, unknown
from fxprune.errors import describe
from fxprune.types import Axis, Field

aten = torch.ops.aten
LIGHT = 0.01  # of the weights: such as those that mix heads, beside the projections to and from the heads


@dataclass
class Births:
    """The parameters and buffers of a graph with the fresh fields that they are born with.

    canonical: for each attribute of the graph the first name of the same tensor.
    tensors: each tensor once, by its first name.
    fields: a fresh field per axis.
    virtual: units of constants, by the call that makes them.
    """

    canonical: dict[str, str]
    tensors: dict[str, Tensor]
    fields: dict[str, tuple[Field, ...]] = field(default_factory=dict)
    virtual: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)


def propagate(gm: fx.GraphModule, births: Births, partition: Partition, heads: bool = False) -> Flow:
    """Run every op on the fields until nothing more is joined; the last pass is returned."""
    activations, indices = _activations(gm), index_roots(gm)

    def once(finest: bool = False) -> Flow:
        flow = Flow(
            partition, heads=heads, virtual=births.virtual, activations=activations, indices=indices, finest=finest
        )
        for node in gm.graph.nodes:
            flow.values[node] = _value(flow, node, births)
        return flow

    if heads:
        _join_heads(once(finest=True).whole, partition)
    while True:
        flow = once()
        if partition.settle():
            continue
        _resolve(flow.conflicts, births, partition)
        if partition.settle():
            continue
        if flow.constrained:
            live = [partition.canonical(item.ids) for fields in births.fields.values() for item in fields]
            join_crossings(partition, flow.constrained, axes_of_units(live, partition.count))
        if not partition.settle():
            return flow


def _join_heads(whole: Iterable[tuple[Field, Sequence[int]]], partition: Partition) -> None:
    """Make heads whole before anything else is joined inside them, such as by tables that all heads share."""
    partition.discard()
    for item, inside in whole:
        for axis in inside:
            partition.union(item.ids, item.ids.narrow(axis, 0, 1), "one head")
    partition.settle()


def _activations(gm: fx.GraphModule) -> frozenset[fx.Node]:
    """The nodes that depend on an input."""
    found: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def _resolve(conflicts: Iterable[Conflict], births: Births, partition: Partition) -> None:
    """Fields that nest but would shrink different axes: a light one stays for the other's sake, others join."""
    if not conflicts:
        return
    weights, matrices = torch.zeros(partition.count), torch.zeros(partition.count, dtype=torch.bool)
    for name, fields in births.fields.items():
        tensor = births.tensors[name]
        for item in fields:
            ids = partition.canonical(item.ids).flatten()
            weights.index_add_(0, ids, torch.full((len(ids),), tensor.numel() / len(ids)))
            matrices[ids] |= sum(size > 1 for size in tensor.shape) > 1
    weights[0], matrices[0] = 0, False  # permanent

    def light(coarse: Field, fine: Field) -> bool:
        share = weights[coarse.ids.unique()].sum() / weights[fine.ids.unique()].sum().clamp_min(1)
        return not bool(matrices[coarse.ids].any()) or bool(share < LIGHT)

    joined = [conflict for conflict in conflicts if not light(conflict.coarse, conflict.fine)]
    for coarse, fine, reason in joined:
        partition.union(coarse.ids, fine.ids, reason)
    if not joined:  # only now, for what has been joined may have left the others nothing to meet
        for coarse, _, reason in conflicts:
            partition.hold(coarse.ids, f"along it lie rows of another group, {reason}")


def axes_of_units(axes: Iterable[Tensor], count: int) -> list[int]:
    """For each of `count` ids a number that two ids share if they lie on the same axes, equally often on each."""
    places, following = torch.zeros(count, dtype=torch.int64), 1
    for ids in axes:
        units, times = torch.unique(ids[ids != 0], return_counts=True)
        if len(units):
            seen, split = torch.unique(torch.stack([places[units], times]), dim=1, return_inverse=True)
            places[units] = split + following
            following += seen.shape[1]
    numbers: list[int] = places.tolist()
    return numbers


def _value(flow: Flow, node: fx.Node, births: Births) -> object:
    """The fields on a node's value."""
    if node.op == "get_attr":
        name = births.canonical[str(node.target)]
        found = (flow.normalized(item.ids, (item.axis,)) for item in births.fields[name])
        return tuple(item for fields in found for item in fields)
    if node.op == "output":
        flow.hold(_read(flow, node), "an output of the network")
    if node.op != "call_function" or not _holds_tensors(node):
        return ()
    if _draws(node):
        flow.hold(_read(flow, node), f"its width changes which random numbers are drawn by {describe(node)}")
        return unknown(flow, node)
    if node.target in RULES:
        return RULES[node.target](flow, node)
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        mutates = node.target._schema.is_mutable
        return unknown(flow, node) if mutates else pointwise(flow, node)
    return unknown(flow, node)


def _read(flow: Flow, node: fx.Node) -> tuple[Field, ...]:
    """All fields on the arguments of a node."""
    values = (flow.values[source] for source in node.all_input_nodes)
    several = (value if isinstance(value, list) else [value] for value in values)
    return tuple(item for value in several for fields in value for item in fields)


def _draws(node: fx.Node) -> bool:
    """Whether a call draws random numbers."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    given = bound_arguments(node)
    return given.get("train", given.get("training", True)) is not False and given.get("dropout_p", 1) != 0


def _holds_tensors(node: fx.Node) -> bool:
    """Whether the value of a call is a tensor, or several; sizes of the batch are numbers, which no unit lies on."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value))


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


def held_axes(births: Births, partition: Partition, flow: Flow) -> dict[Axis, str]:
    """Each axis of a parameter on which nothing may shrink, with the reason."""
    held: dict[Axis, str] = {}
    for name, fields in births.fields.items():
        for item in fields:
            if not bool(partition.canonical(item.ids).any()):
                held[Axis(name, item.axis)] = partition.reason(item.ids) or "nothing in the graph can shrink it"
    return held
