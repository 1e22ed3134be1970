"""PreCrop and PreConfig: the widths, and the layer densities, that the convex programs of SynExp give."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from fxprune.closed_form.convex import Limit, Numbers, Posynomial, Solution, check_feasible, nearest, solve
from fxprune.widths.layers import Layer
from fxprune.widths.setting import Choice, Setting, method


@method
def precrop(setting: Setting) -> Choice:
    """The widths that maximise the sum of the logs of the layers' densities; PreConfig where they may grow.

    With u the logs of the widths this is a geometric program: the log density of a layer is the sum of u over the
    groups on its axes, and costs are posynomials in exp(u). An axis that several groups share (behind a concatenation)
    counts with the mean of the logs, which is a lower bound. Source: arXiv 2203.02549.

    Around its optimum the objective is nearly flat: it sees the product of two neighbouring widths, not how they share
    it. Where widths may grow, nothing else keeps residual streams from becoming very wide and the layers between them
    very narrow. Of the widths that cost the layers at most `setting.slack` of their densities, on average, the nearest
    to the original's are taken.
    """
    optimum = solved(setting)
    logs = optimum.logs
    if setting.slack and any(optimum.multipliers.values()):
        program, dense = _program(setting), np.log(list(setting.dense.values()))
        calls = sum(len(layer.calls) for layer in setting.layers)
        logs = nearest(*program, to=dense, least=float(program[0] @ logs) - setting.slack * calls)
    return Choice(dict(zip(setting.dense, np.exp(logs).tolist(), strict=True)), optimum=optimum)


def check_reachable(setting: Setting) -> None:
    """Raise BudgetError, naming the tightest limit, where not even the least widths keep all limits."""
    _, limits, least, _ = _program(setting)
    check_feasible(limits, least)


def solved(setting: Setting) -> Solution:
    """The solution of the program over the logs of the widths, in the order of `setting.dense`."""
    return solve(*_program(setting))


def _program(setting: Setting) -> tuple[Numbers, list[Limit], Numbers, Numbers]:
    """What the program maximises, under which limits, between which bounds."""
    names = list(setting.dense)
    slopes = slopes_of(setting.layers)
    limits = [Limit(kind, Posynomial(*setting.cost.terms(kind)), most) for kind, most in setting.limits.items()]
    least, most = (np.log([bound[name] for name in names]) for bound in (setting.least, setting.most))
    return np.array([slopes[name] for name in names]), limits, least, most


def objective(layers: tuple[Layer, ...], densities: Mapping[str, float]) -> float:
    """The sum of the logs of the densities, each layer as often as the signal passes it."""
    return math.fsum(len(layer.calls) * math.log(densities[layer.name]) for layer in layers)


def objective_bound(setting: Setting, widths: Mapping[str, float]) -> float:
    """What the program over widths maximises: the objective, with the mean of the logs where groups share an axis."""
    slopes = slopes_of(setting.layers)
    return math.fsum(slopes[name] * math.log(width / setting.dense[name]) for name, width in widths.items())


def slopes_of(layers: tuple[Layer, ...]) -> Counter[str]:
    """How the objective grows with the log of each group's width; a layer counts as often as the signal passes it."""
    slopes: Counter[str] = Counter()
    for layer in layers:
        for name, slope in layer.slopes.items():
            slopes[name] += slope * len(layer.calls)
    return slopes


def layer_densities(setting: Setting, most: float | None = 1.0) -> dict[str, float]:
    """The density of each layer where single weights, not channels, may go: the program of the paper.

    What belongs to no layer costs what it costs in the original. Memory is counted as that of a layer's results, which
    have the square root of its density in channels.

    Raises what `solve` raises: a budget may be too small for the part that belongs to no layer.
    """
    names = [layer.name for layer in setting.layers]
    limits = [_limit(setting, kind, most) for kind, most in setting.limits.items()]
    uses = np.array([float(len(layer.calls)) for layer in setting.layers])
    upper = np.full(len(names), np.inf if most is None else np.log(most))
    return dict(zip(names, np.exp(solve(uses, limits, np.full(len(names), -np.inf), upper).logs).tolist(), strict=True))


def _limit(setting: Setting, kind: str, most: float) -> Limit:
    costs = layer_costs(setting, kind)
    power = 0.5 if kind == "memory" else 1.0
    rest = max(0.0, setting.spent(setting.dense)[kind] - float(costs.sum()))
    factors, exponents = np.array([*costs, rest]), np.vstack([power * np.eye(len(costs)), np.zeros(len(costs))])
    counts = factors > 0
    return Limit(kind, Posynomial(factors[counts], exponents[counts]), most)


def layer_costs(setting: Setting, kind: str) -> Numbers:
    """What each layer of the original costs: its weights, the FLOPs of its calls, or the bytes of their results."""
    if kind == "params":
        return np.array([float(layer.weights) for layer in setting.layers])
    if kind == "flops":
        whole = {setting.cost.symbols[name]: width for name, width in setting.dense.items()}
        by_node = setting.cost.by_node
        return np.array([sum(float(by_node[n].subs(whole)) for n in layer.calls) for layer in setting.layers])
    values = {node.name: node.meta.get("val") for node in setting.gm.graph.nodes}
    each = [sum(values[n][:1].numel() * values[n].element_size() for n in layer.calls) for layer in setting.layers]
    return np.array(each, dtype=np.float64)


def densities_at(layers: tuple[Layer, ...], dense: Mapping[str, int], widths: Mapping[str, float]) -> dict[str, float]:
    """The density of each layer at given widths."""
    kept = {name: width / dense[name] for name, width in widths.items()}
    return {layer.name: layer.density(kept) for layer in layers}
