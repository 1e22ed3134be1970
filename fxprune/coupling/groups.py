"""From the fixpoint to groups: units on exactly the same parameter axes, in blocks that keep equally many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture import capture_info
from fxprune.coupling.blocks import Family, solve
from fxprune.coupling.flow import Flow
from fxprune.coupling.metadata import refuse_stale, require_metadata
from fxprune.coupling.partition import Partition
from fxprune.coupling.propagate import Births, axes_of_units, give_birth, held_axes, propagate
from fxprune.types import Axis, ChannelGroup, Coupling, Field, Role, Source


def analyze(gm: fx.GraphModule, heads: bool = False) -> Coupling:
    """The coupling of a captured graph: groups that can shrink, and axes that cannot, with the reasons.

    gm: from `fxprune.capture`, or the result of shrinking one. It is only read.
    heads: whether attention loses whole heads; by default all heads lose dimensions, equally many.

    Raises CaptureError where `capture` did not make the graph, or its metadata are missing or stale.
    """
    names = capture_info(gm).names
    require_metadata(gm)
    partition = Partition()
    births = give_birth(gm, names, partition)
    try:
        flow = propagate(gm, births, partition, heads)
    except (RuntimeError, ValueError, IndexError) as error:
        refuse_stale(gm, error)
        raise
    if _hold_orphans(births, partition, flow):
        flow = propagate(gm, births, partition, heads)
    return _coupling(births, partition, flow, names, heads)


def _hold_orphans(births: Births, partition: Partition, flow: Flow) -> bool:
    """Classes that nothing produces, or that lie on no parameter, are permanent; whether there were any."""
    consumed = _consumed(births, flow)
    made, useful = (torch.zeros(partition.count, dtype=torch.bool) for _ in range(2))
    made[0] = useful[0] = True
    for name, fields in births.fields.items():
        for item in fields:
            ids = partition.canonical(item.ids).flatten()
            if Axis(name, item.axis) not in consumed:
                made[ids] = True
            if not _is_buffer(births, name):
                useful[ids] = True
    everything = [item.ids for fields in births.fields.values() for item in fields]
    for ids in (*everything, *births.virtual.values()):
        ids = partition.canonical(ids).flatten()
        partition.hold(ids[~(made & useful)[ids]], "what it reads is not made by a parameter")
    return partition.settle()


def _is_buffer(births: Births, name: str) -> bool:
    return not isinstance(births.tensors[name], nn.Parameter)


def _consumed(births: Births, flow: Flow) -> set[Axis]:
    """The axes that contractions read and nothing makes a channel of, by the first names of their tensors."""
    indices = {Axis(births.canonical[name], 0) for name in flow.indices}
    return indices | {Axis(births.canonical[axis.param], axis.dim) for axis in flow.consumed - flow.produced}


def _coupling(births: Births, partition: Partition, flow: Flow, names: tuple[str, ...], heads: bool) -> Coupling:
    place = {name: index for index, name in enumerate(names)}
    order = sorted(births.fields, key=lambda name: (_is_buffer(births, name), place.get(name, len(names))))
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
    axes = axes_of_units((item.ids for fields in live.values() for item in fields), partition.count)
    members = _members(live, roles, solve(flow.constrained, axes).families, axes)
    groups, renumber = _groups(members, live, roles, births, flow, partition.count)
    return Coupling(
        groups=groups,
        held=held_axes(births, partition, flow),
        roles=roles,
        fields={node.name: _renumbered(value, renumber) for node, value in flow.values.items()},
        param_fields={
            alias: _renumbered(live[name], renumber) for alias, name in births.canonical.items() if name in live
        },
        changes_statistics=tuple(flow.statistics),
        heads=heads,
    )


Members = list[tuple[tuple[int, ...], Family]]


def _groups(
    members: Members,
    live: Mapping[str, tuple[Field, ...]],
    roles: Mapping[Axis, Role],
    births: Births,
    flow: Flow,
    count: int,
) -> tuple[tuple[ChannelGroup, ...], Tensor]:
    """The groups, and the new number of each of `count` ids: those of a group follow one another, others are 0."""
    renumber, home = torch.zeros(count, dtype=torch.int64), torch.full((count,), -1)
    offsets = [1]
    for index, (ids, _) in enumerate(members):
        renumber[list(ids)] = torch.arange(offsets[-1], offsets[-1] + len(ids))
        home[list(ids)] = index
        offsets.append(offsets[-1] + len(ids))
    sources = _sources(live, roles, home, renumber, len(members), flow)
    names = _names(members, live, roles)
    found = (
        _group(name, blocks, offset, len(ids), source, renumber, births)
        for name, (ids, blocks), offset, source in zip(names, members, offsets[:-1], sources, strict=True)
    )
    return tuple(found), renumber


def _members(
    live: Mapping[str, tuple[Field, ...]],
    roles: Mapping[Axis, Role],
    families: tuple[Family, ...],
    axes: Sequence[int],
) -> Members:
    """Ids of each group in order, with its blocks: same axes (and as often), or one family of blocks."""
    family_of = {unit: index for index, family in enumerate(families) for row in family for unit in row}
    groups: dict[tuple[str, int], list[int]] = {}
    for unit in _in_order(live, roles):
        key = ("family", family_of[unit]) if unit in family_of else ("axes", axes[unit])
        groups.setdefault(key, []).append(unit)
    return [(tuple(ids), families[index] if kind == "family" else ()) for (kind, index), ids in groups.items()]


def _in_order(live: Mapping[str, tuple[Field, ...]], roles: Mapping[Axis, Role]) -> dict[int, None]:
    """All ids in the order in which parameters produce them."""
    seen: dict[int, None] = {}
    for name, fields in live.items():
        for item in fields:
            if roles[Axis(name, item.axis)] == "produces":
                seen.update(dict.fromkeys(item.ids[item.ids != 0].tolist()))
    return seen


def _names(members: Members, live: Mapping[str, tuple[Field, ...]], roles: Mapping[Axis, Role]) -> list[str]:
    """The first producing parameter of each group (a buffer where there is none), with #k where several share it."""
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
    live: Mapping[str, tuple[Field, ...]],
    roles: Mapping[Axis, Role],
    home: Tensor,
    renumber: Tensor,
    count: int,
    flow: Flow,
) -> list[list[tuple[Axis, Source]]]:
    """Where the units of each group lie, by the index of the group."""
    sources: list[list[tuple[Axis, Source]]] = [[] for _ in range(count)]
    for param, fields in live.items():
        if param in flow.indices:
            continue  # an index says where to read: it holds no channel's values
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
    return tuple(replace(item, ids=table[item.ids]) for item in value)
