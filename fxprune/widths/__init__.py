"""Widths before training: how many units each group is to have, by methods that need no trained weights."""

from __future__ import annotations

from fxprune.widths import erk, gradients, synflow, uniform  # noqa: F401 (their methods register on import)
from fxprune.widths.convex import (
    check_reachable,
    densities_at,
    layer_densities,
    objective,
    objective_bound,
    slopes_of,
    solved,
)
from fxprune.widths.layers import Layer, layers_of
from fxprune.widths.record import Configured, configured
from fxprune.widths.rounding import rounded
from fxprune.widths.setting import GROWTH, METHODS, SLACK, Choice, Setting, method

__all__ = [
    "GROWTH",
    "METHODS",
    "SLACK",
    "Choice",
    "Configured",
    "Layer",
    "Setting",
    "check_reachable",
    "configured",
    "densities_at",
    "layer_densities",
    "layers_of",
    "method",
    "objective",
    "objective_bound",
    "rounded",
    "slopes_of",
    "solved",
]
