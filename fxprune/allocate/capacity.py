"""Capacity: foretold errors that heed how many parameters leave with the units of a group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from fxprune.allocate.problem import Costs, foretold
from fxprune.closed_form.removal import Removal
from fxprune.types import ChannelGroup, Coupling


def heeding_parameters(
    removals: Mapping[str, Removal], coupling: Coupling, cost: Costs, widths: Mapping[str, int], capacity: float
) -> dict[str, Removal]:
    """The removals, with what their units hold of the parameters added to their errors.

    An error is foretold of one cut in a network that is whole, made up for by least squares. What is left of it when
    all groups are cut and trained together is the less the more parameters there are to make up with: as a power law
    has it, error x parameters^-capacity is to be least. About widths of an error E and a share P of the parameters
    that is the same as the sum of errors, and of capacity E / P times the parameters that leave. A group counts the
    share of the parameters that its units touch, times the logarithm of what is kept of it, so that its last units are
    the dearest.

    widths: those of least error, to which the sum is balanced; groups that are left out are whole.
    """
    dense = cost.evaluate({}, ("params",))["params"]
    left = cost.evaluate(widths, ("params",))["params"]
    weight = capacity * foretold(removals, widths) * dense / max(1, left)

    def heeding(group: ChannelGroup, removal: Removal) -> Removal:
        touched = 1 - cost.evaluate({group.name: group.step}, ("params",))["params"] / max(1, dense)
        kept = (max(1, group.width - rounds * removal.step) for rounds in range(len(removal.errors)))
        dearer = (weight * touched * math.log(group.width / units) for units in kept)
        return replace(removal, errors=tuple(map(sum, zip(removal.errors, dearer, strict=True))))

    return {group.name: heeding(group, removals[group.name]) for group in coupling.groups}
