"""Whether a plan is possible: every group known, every unit in range, no group empty, blocks equally long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches

from fxprune.errors import PlanError
from fxprune.types import ChannelGroup, Coupling, Plan


def check_plan(coupling: Coupling, plan: Plan) -> Plan:
    """The plan with its units sorted. Raises PlanError with the group and what would be valid.

    Every unit is there once at most, unless the plan widens.
    """
    kept = {}
    for name, units in plan.kept.items():
        if name not in coupling.by_name:
            near = get_close_matches(name, coupling.by_name, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see Coupling.groups for the names"
            hint = hint if coupling.groups else "nothing in it can shrink, see Coupling.held for the reasons"
            raise PlanError(f"the plan names group {name!r}, which this network does not have: {hint}")
        _check_width(coupling.by_name[name], plan.widths)
        _check_units(coupling.by_name[name], units, plan.widens)
        kept[name] = tuple(sorted(units))
    return Plan(kept, plan.inputs, plan.heads, plan.widens, plan.widths)


def require_plan(plan: object) -> Plan:
    """The same plan. Raises PlanError where it is something else, such as the mapping that a plan is made of."""
    if not isinstance(plan, Plan):
        raise PlanError(f"plan must be a Plan, not {type(plan).__name__}: Plan(kept), or Plan.from_json(text)")
    return plan


def _check_width(group: ChannelGroup, widths: Mapping[str, int]) -> None:
    known = widths.get(group.name, group.width)
    if known != group.width:
        raise PlanError(
            f"the plan is another model's: group {group.name!r} had {known} units where it was made, and has "
            f"{group.width} here"
        )


def _check_units(group: ChannelGroup, units: tuple[int, ...], widens: bool) -> None:
    if not units:
        raise PlanError(f"the plan keeps nothing of group {group.name!r}: keep at least {group.step} of {group.width}")
    times = Counter(units)
    twice = sorted(unit for unit, count in times.items() if count > 1)
    if twice and not widens:
        raise PlanError(f"the plan keeps units {twice[:5]} of group {group.name!r} more than once")
    outside = [unit for unit in units if not 0 <= unit < group.width]
    if outside:
        raise PlanError(
            f"the plan keeps units {outside[:5]} of group {group.name!r}, whose units are 0 to {group.width - 1}"
        )
    counts = [sum(times[unit] for unit in block) for block in group.blocks]
    if len(set(counts)) > 1 or (counts and not counts[0]):
        raise PlanError(
            f"the plan keeps {min(counts)} to {max(counts)} units in the {len(counts)} blocks of group {group.name!r}: "
            f"keep equally many, at least one, in each of {_shortened(group.blocks)}"
        )


def _shortened(blocks: tuple[tuple[int, ...], ...]) -> str:
    text = ", ".join(f"{block[0]}..{block[-1]}" for block in blocks[:3])
    return text + (", ..." if len(blocks) > 3 else "")
