"""Selection: from an order of removal and a width for each group to the units that stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fxprune.closed_form.removal import Removal
from fxprune.errors import PlanError
from fxprune.types import Coupling, Plan


def select(
    coupling: Coupling,
    removals: Mapping[str, Removal],
    widths: Mapping[str, int],
    inputs: Iterable[tuple[Sequence[int], str]] = (),
) -> Plan:
    """The plan that keeps `widths` units of each group: the ones that leave last. Groups that stay whole are left out.

    inputs: shapes and dtypes of the example inputs, for `Plan.apply`.

    Raises PlanError for an unknown group, a width out of range or one that the group's blocks cannot share equally.
    """
    kept: dict[str, tuple[int, ...]] = {}
    for name, width in widths.items():
        group = coupling.by_name.get(name)
        if group is None:
            raise PlanError(f"no group is called {name!r}; there are: {', '.join(coupling.by_name)}")
        if not 0 < width <= group.width or width % group.step:
            raise PlanError(f"{name}: cannot keep {width} of {group.width} units in {group.step} equal blocks")
        if width < group.width:
            gone = set(removals[name].order[: group.width - width])
            kept[name] = tuple(unit for unit in range(group.width) if unit not in gone)
    return Plan(kept, inputs, widths={name: coupling.by_name[name].width for name in kept})
