"""What is worth knowing of widths that were set: the densities that they leave, beside what the programs reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fxprune.errors import BudgetError, RewriteError, SolverError
from fxprune.widths.convex import densities_at, layer_densities, objective, objective_bound, solved
from fxprune.widths.setting import Choice, Setting
from fxprune.widths.synexp import synexp


class Configured(NamedTuple):
    """Widths, and what is worth knowing of them.

    method: which method set the widths.
    drawn: whether it had no order of units, so that they were drawn by the seed.
    wanted, widths: of each group, before and after rounding to whole ones.
    densities: of each layer, by its name: its weights, the density where single weights may go (None where no such
        program can be solved), and the density that the widths leave.
    objective: sums of the logs of the layers' densities, by what they are of: what the programs reach for single
        weights and for channels, and what the widths have before and after rounding; and the log of SynExp, relative to
        that of the original.
    notes: what a user must know, one sentence each.
    """

    method: str
    drawn: bool
    wanted: Mapping[str, float]
    widths: Mapping[str, int]
    densities: Mapping[str, tuple[int, float | None, float]]
    objective: Mapping[str, float]
    notes: tuple[str, ...] = ()


def configured(method: str, setting: Setting, choice: Choice, widths: Mapping[str, int]) -> Configured:
    """What is worth knowing of the widths that a method wanted, and of the whole ones."""
    layers, notes = setting.layers, []
    kept = densities_at(layers, setting.dense, widths)
    best: dict[str, float] = {}
    sums: dict[str, float] = {}
    try:
        best = layer_densities(setting, None if _grows(setting) else 1.0)
        sums["single weights"] = objective(layers, best)
    except (BudgetError, SolverError):
        notes.append("no densities of single weights keep the budget: what belongs to no layer is too large")
    optimum = choice.optimum or solved(setting)
    sums["channels"] = _value(setting, dict(zip(setting.dense, np.exp(optimum.logs).tolist(), strict=True)))
    sums["wanted widths"] = _value(setting, choice.widths)
    sums["whole widths"] = objective(layers, kept)
    if not math.isclose(bound := objective_bound(setting, widths), sums["whole widths"], abs_tol=1e-9):
        sums["whole widths, where groups share an axis by the mean of their logs"] = bound
    try:
        flow = synexp(setting.gm)
        sums["SynExp"] = flow.gain({name: density for name, density in kept.items() if name in flow.densities})
    except RewriteError as error:
        notes.append(f"SynExp is not known for this network: {error}")
    if optimum.solver == "SLSQP" or optimum.solver == "Scs":
        notes.append(f"the convex program was solved by {optimum.solver}, for Clarabel gave up")
    densities = {layer.name: (layer.weights, best.get(layer.name), kept[layer.name]) for layer in layers}
    return Configured(method, not choice.order, dict(choice.widths), widths, densities, sums, tuple(notes))


def _grows(setting: Setting) -> bool:
    """Whether some group may become wider than it is."""
    return any(setting.most[name] > width for name, width in setting.dense.items())


def _value(setting: Setting, widths: Mapping[str, float]) -> float:
    """The sum of the logs of the exact densities at widths that need not be whole."""
    return objective(setting.layers, densities_at(setting.layers, setting.dense, widths))
