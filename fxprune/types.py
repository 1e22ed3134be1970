"""The values that the stages of fxprune hand to one another. All are frozen; none knows how it was computed."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.rectangles import rectangles

if TYPE_CHECKING:
    from torch import nn

Role = Literal["produces", "consumes"]


class Axis(NamedTuple):
    """One dimension of one parameter or buffer."""

    param: str
    dim: int

    def __str__(self) -> str:
        return f"{self.param}[{self.dim}]"


class Slice(NamedTuple):
    """The part of one parameter or buffer that leaves with a unit: the outer product of `index`.

    `index` has an entry for each dimension of the tensor: None (all of it) or a tuple of positions.
    """

    param: str
    index: tuple[tuple[int, ...] | None, ...]  # type: ignore[assignment] # hides tuple.index, which nobody calls here
    role: Role


@dataclass(frozen=True, eq=False)
class Field:
    """Which unit each position of a tensor belongs to.

    ids: int64, broadcastable to the tensor, of size 1 on the axes along which nothing varies; 0 is permanent, other
        numbers are `ChannelGroup.offset + unit`.
    axis: the axis that gets shorter when units leave. Along the other axes of `ids` every row keeps equally many.
    zero: whether the positions of a unit hold zero once all its slices are zero: a sum over them then loses nothing.
    """

    ids: Tensor
    axis: int
    zero: bool = True


class Source(NamedTuple):
    """Where the units of a group lie in one parameter or buffer: `ids` as in Field, with the role of its axis."""

    param: str
    ids: Tensor
    role: Role


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that live on exactly the same parameter axes.

    name: unique and stable, from the first producing parameter.
    width: how many units there are.
    blocks: disjoint tuples of units which must all keep equally many; empty when the group is free.
    axes: the parameter axes that the group runs along.
    offset: the id of unit 0 in the fields of the coupling; the units of a group are numbered consecutively.
    sources: the tensors that the units lie in.
    """

    name: str
    width: int
    blocks: tuple[tuple[int, ...], ...]
    axes: tuple[Axis, ...]
    offset: int
    sources: tuple[Source, ...]

    def slices(self, unit: int) -> tuple[Slice, ...]:
        """Every part of every parameter and channel-wise buffer that leaves with `unit`."""
        return self._slices[unit]

    @cached_property
    def _slices(self) -> list[tuple[Slice, ...]]:
        parts: list[list[Slice]] = [[] for _ in range(self.width)]
        for param, ids, role in self.sources:
            for unit, index in rectangles(ids - self.offset, self.width):
                parts[unit].append(Slice(param, index, role))
        return [tuple(part) for part in parts]

    @property
    def step(self) -> int:
        """The fewest units that can leave together: one from each block."""
        return max(1, len(self.blocks))


@dataclass(frozen=True, eq=False)
class Coupling:
    """Which channels must go together, which cannot go, and why. `str()` is stable text.

    groups: what can shrink, in the order of the original's parameters.
    held: each parameter axis that may not shrink, with the reason.
    roles: for each axis of a group, whether the parameter makes the channel or reads it.
    fields: the fields on the value of each node of the graph, by the node's name.
    param_fields: the same for each parameter and buffer, by its original name.
    changes_statistics: nodes that normalise over a shrinking axis, so that their statistics change with the width.
    heads: whether attention loses whole heads.
    """

    groups: tuple[ChannelGroup, ...]
    held: Mapping[Axis, str]
    roles: Mapping[Axis, Role]
    fields: Mapping[str, tuple[Field, ...]]
    param_fields: Mapping[str, tuple[Field, ...]]
    changes_statistics: tuple[str, ...] = ()
    heads: bool = False

    @cached_property
    def by_name(self) -> dict[str, ChannelGroup]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    def counts(self, plan: Plan) -> Tensor:
        """How often each id is there under `plan`: int64, indexed by the ids of the fields; 1 for id 0."""
        counts = torch.ones(1 + sum(group.width for group in self.groups), dtype=torch.int64)
        for name, kept in plan.kept.items():
            group = self.by_name[name]
            times = torch.bincount(torch.tensor(kept, dtype=torch.int64), minlength=group.width)
            counts[group.offset : group.offset + group.width] = times
        return counts

    def mask(self, plan: Plan) -> Tensor:
        """Which ids stay under `plan`: bool, indexed by the ids of the fields; True for id 0."""
        return self.counts(plan) > 0

    def __str__(self) -> str:
        lines = [f"{len(self.groups)} groups, {len(self.held)} held axes"]
        for group in self.groups:
            blocks = f" in {len(group.blocks)} blocks" if group.blocks else ""
            lines.append(f"{group.name}: {group.width} units{blocks}")
            lines += [f"    {self.roles[axis]} {axis}" for axis in group.axes]
        by_reason: dict[str, list[Axis]] = {}
        for axis, reason in self.held.items():
            by_reason.setdefault(reason, []).append(axis)
        lines += [f"held: {', '.join(map(str, axes))}: {reason}" for reason, axes in by_reason.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Plan:
    """Which units of which group stay. A group that is left out keeps everything.

    kept: sorted unit indices by group name. Where the plan widens, a unit may be named several times, and is then made
        that many times.
    inputs: shapes and dtypes of the example inputs that the coupling was found with: `apply` traces a module with them.
    heads: whether the units of attention are whole heads, as in `analyze`.
    widens: whether units may be named several times, so that groups grow.
    widths: how many units groups had where the plan was made, by name: a network in which they have more or fewer is
        refused. A plan written by hand need not say.
    """

    kept: Mapping[str, tuple[int, ...]]
    inputs: tuple[tuple[tuple[int, ...], str], ...] = field(default=(), compare=False)
    heads: bool = False
    widens: bool = False
    widths: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def __init__(
        self,
        kept: Mapping[str, Iterable[int]],
        inputs: Iterable[tuple[Sequence[int], str]] = (),
        heads: bool = False,
        widens: bool = False,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        if not isinstance(kept, Mapping):
            raise PlanError(f"a plan maps group names to the units that stay; {type(kept).__name__} is no mapping")
        object.__setattr__(self, "kept", {str(name): _units(name, units) for name, units in kept.items()})
        object.__setattr__(self, "inputs", tuple((tuple(shape), dtype) for shape, dtype in inputs))
        object.__setattr__(self, "heads", bool(heads))
        object.__setattr__(self, "widens", bool(widens))
        object.__setattr__(self, "widths", {str(name): operator.index(width) for name, width in (widths or {}).items()})

    @property
    def counts(self) -> dict[str, int]:
        """How many units stay of each group that the plan names."""
        return {name: len(units) for name, units in self.kept.items()}

    @property
    def repeats(self) -> bool:
        """Whether the plan makes any unit more than once."""
        return any(len(set(units)) < len(units) for units in self.kept.values())

    def to_json(self) -> str:
        """The plan as JSON text; `Plan.from_json` is its inverse."""
        data = {
            "version": 1,
            "heads": self.heads,
            "widens": self.widens,
            "inputs": [{"shape": list(shape), "dtype": dtype} for shape, dtype in self.inputs],
            **({"widths": dict(self.widths)} if self.widths else {}),
        }
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in data.items()]
        groups = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(units)}" for name, units in self.kept.items())
        return ",\n ".join(["{\n " + lines[0], *lines[1:], f'"kept": {{\n  {groups}\n }}\n}}'])

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote. Raises PlanError on anything else."""
        try:
            data: Any = json.loads(text)
            if data["version"] != 1:
                raise PlanError(f"plan version {data['version']!r} is not known; this fxprune reads version 1")
            inputs = [(item["shape"], item["dtype"]) for item in data["inputs"]]
            return Plan(
                data["kept"], inputs, data.get("heads", False), data.get("widens", False), data.get("widths", {})
            )
        except PlanError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"this is not a plan written by Plan.to_json: {error!r}") from error

    def apply(self, model: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None = None) -> nn.Module:
        """A copy of the user's own module, same class, with shrunk parameters and attributes.

        model: the module that was analysed, or one of the same architecture. It is not modified.
        example_inputs: needed only where the plan was written by hand and `model` was never captured in this process.

        Raises PlanError where the module's forward bakes a size that the plan changes, with the reason.
        """
        from fxprune.twin import apply_plan  # upwards on purpose: a method of a value that is built from passes

        return apply_plan(self, model, example_inputs)


def _units(name: str, units: Iterable[int]) -> tuple[int, ...]:
    """Unit indices, sorted. Raises PlanError where they are none."""
    try:
        if not isinstance(units, str):
            return tuple(sorted(operator.index(unit) for unit in units))
    except TypeError:
        pass
    raise PlanError(f"the units of group {name!r} must be whole numbers, not {units!r}")


@dataclass(frozen=True)
class Verification:
    """How far a rewritten network is from the oracle.

    max_error: largest absolute difference over all outputs, divided by the largest magnitude of the reference (or 1).
    ok: whether max_error is within `tolerance`.
    method: what was compared, in words.
    outputs: the error of each output.
    """

    max_error: float
    tolerance: float
    method: str
    outputs: tuple[float, ...]

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance (False for NaN)."""
        return self.max_error <= self.tolerance

    def __str__(self) -> str:
        return f"{'verified' if self.ok else 'FAILED'}: max error {self.max_error:.1e} ({self.method})"
