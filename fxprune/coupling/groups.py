"""From the fixpoint to groups: units on exactly the same parameter axes, in blocks that keep equally many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture import capture_info
from fxprune.coupling.blocks import Family, block_families
from fxprune.coupling.flow import Flow
from fxprune.coupling.partition import Partition
from fxprune.coupling.propagate import Births, axes_of_units, give_birth, held_axes, propagate
from fxprune.types import Axis, ChannelGroup, Coupling, Field, Role, Source


def analyze(gm: fx.GraphModule) -> Coupling:
    """The coupling of a captured graph: groups that can shrink, and axes that cannot, with the reasons.

    gm: from `fxprune.capture`, or the result of shrinking one. It is only read.
    """
    partition = Partition()
    names = capture_info(gm).names
    births = give_birth(gm, names, partition)
    _hold_unborn(births, partition)
    flow = propagate(gm, births, partition)
    if _hold_orphans(births, partition, flow):
        flow = propagate(gm, births, partition)
    return _coupling(births, partition, flow, names)


def _hold_unborn(births: Births, partition: Partition) -> None:
    """Tensors other than floating point are indices and counters: they stay as they are."""
    for name, tensor in births.tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            for item in births.fields[name]:
                partition.hold(item.ids, f"`{name}` holds {tensor.dtype} values, not channels")


def _hold_orphans(births: Births, partition: Partition, flow: Flow) -> bool:
    """Classes that no parameter produces are permanent; whether there were any."""
    consumed = _consumed(births, flow)
    produced = [
        partition.canonical(item.ids).flatten()
        for name, fields in births.fields.items()
        for item in fields
        if Axis(name, item.axis) not in consumed
    ]
    made = torch.zeros(partition.count, dtype=torch.bool)
    made[torch.cat([torch.zeros(1, dtype=torch.int64), *produced])] = True
    everything = [item.ids for fields in births.fields.values() for item in fields]
    for ids in (*everything, *flow.padding.values()):
        ids = partition.canonical(ids).flatten()
        partition.hold(ids[~made[ids]], "what it reads is not made by a parameter")
    return partition.settle()


def _consumed(births: Births, flow: Flow) -> set[Axis]:
    """The axes that contractions read, by the first names of their tensors."""
    return {Axis(births.canonical[axis.param], axis.dim) for axis in flow.consumed}


def _coupling(births: Births, partition: Partition, flow: Flow, names: tuple[str, ...]) -> Coupling:
    order = sorted(births.fields, key=lambda name: names.index(name) if name in names else len(names))
    live = {
        name: tuple(found for item in births.fields[name] for found in flow.normalized(item.ids, (item.axis,)))
        for name in order
    }
    consumed = _consumed(births, flow)
    roles: dict[Axis, Role] = {
        Axis(name, item.axis): "consumes" if Axis(name, item.axis) in consumed else "produces"
        for name in order
        for item in live[name]
    }
    families = block_families(flow.constrained)
    members = _members(live, roles, families)
    renumber = torch.zeros(int(max((max(ids) for ids, _ in members), default=0)) + 1, dtype=torch.int64)
    home = torch.full((len(renumber),), -1)
    offsets = [1]
    for index, (ids, _) in enumerate(members):
        renumber[list(ids)] = torch.arange(offsets[-1], offsets[-1] + len(ids))
        home[list(ids)] = index
        offsets.append(offsets[-1] + len(ids))
    sources = _sources(live, roles, home, renumber, len(members))
    groups = [
        _group(name, blocks, offset, len(ids), source, renumber, births)
        for name, (ids, blocks), offset, source in zip(
            _names(members, live, roles), members, offsets, sources, strict=False
        )
    ]
    return Coupling(
        groups=tuple(groups),
        held=held_axes(births, partition, flow),
        roles=roles,
        fields={node.name: _renumbered(value, renumber) for node, value in flow.values.items()},
        param_fields={
            alias: _renumbered(live[name], renumber) for alias, name in births.canonical.items() if name in live
        },
        changes_statistics=tuple(flow.statistics),
    )


Members = list[tuple[tuple[int, ...], Family]]


def _members(
    live: Mapping[str, tuple[Field, ...]], roles: Mapping[Axis, Role], families: tuple[Family, ...]
) -> Members:
    """Ids of each group in order, with its blocks: same axes (and as often), or one family of blocks."""
    axes = axes_of_units(item.ids for fields in live.values() for item in fields)
    family_of = {unit: index for index, family in enumerate(families) for row in family for unit in row}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for unit in _in_order(live, roles):
        key = (family_of[unit],) if unit in family_of else axes[unit]
        groups.setdefault(key, []).append(unit)
    return [(tuple(ids), families[key[0]] if isinstance(key[0], int) else ()) for key, ids in groups.items()]


def _in_order(live: Mapping[str, tuple[Field, ...]], roles: Mapping[Axis, Role]) -> dict[int, None]:
    """All ids in the order in which parameters produce them."""
    seen: dict[int, None] = {}
    for name, fields in live.items():
        for item in fields:
            if roles[Axis(name, item.axis)] == "produces":
                seen.update(dict.fromkeys(item.ids[item.ids != 0].tolist()))
    return seen


def _names(members: Members, live: Mapping[str, tuple[Field, ...]], roles: Mapping[Axis, Role]) -> list[str]:
    """The first producing parameter of each group, with #k where several groups share it."""
    producer: dict[int, str] = {}
    for name, fields in live.items():
        for item in fields:
            if roles[Axis(name, item.axis)] == "produces":
                for unit in item.ids[item.ids != 0].unique().tolist():
                    producer.setdefault(unit, name)
    first = [producer[ids[0]] for ids, _ in members]
    count: dict[str, int] = {}
    names = []
    for name in first:
        count[name] = count.get(name, 0) + 1
        names.append(name if first.count(name) == 1 else f"{name}#{count[name]}")
    return names


def _sources(
    live: Mapping[str, tuple[Field, ...]], roles: Mapping[Axis, Role], home: Tensor, renumber: Tensor, count: int
) -> list[list[tuple[Axis, Source]]]:
    """Where the units of each group lie, by the index of the group."""
    sources: list[list[tuple[Axis, Source]]] = [[] for _ in range(count)]
    for param, fields in live.items():
        for item in fields:
            axis, groups = Axis(param, item.axis), home[item.ids]
            for group in torch.unique(groups[groups >= 0]).tolist():
                ids = torch.where(groups == group, renumber[item.ids], 0)
                sources[group].append((axis, Source(param, ids, roles[axis])))
    return sources


def _group(
    name: str,
    family: Family,
    offset: int,
    width: int,
    sources: list[tuple[Axis, Source]],
    renumber: Tensor,
    births: Births,
) -> ChannelGroup:
    blocks = sorted(tuple(sorted((renumber[list(row)] - offset).tolist())) for row in family)
    axes = tuple(axis for axis, _ in sources if isinstance(births.tensors[axis.param], nn.Parameter))
    return ChannelGroup(name, width, tuple(blocks), axes, offset, tuple(source for _, source in sources))


def _renumbered(value: Any, table: Tensor) -> Any:
    """Fields with ids renumbered so that those of a group follow one another."""
    if isinstance(value, list):
        return tuple(_renumbered(item, table) for item in value)
    return tuple(Field(table[item.ids], item.axis) for item in value)
