"""The registry of allocators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.allocate.problem import Problem, Rungs, Totals
from fxprune.errors import registered

Allocator = Callable[[Problem], Mapping[str, int]]
Worth = Callable[[Problem, Rungs], NDArray[np.float64]]


@dataclass(frozen=True)
class Method:
    """An allocator with the order in which units are given back, the worthiest group first, while they still fit."""

    allocator: Allocator
    worth: Worth
    bounds_error: bool


METHODS: dict[str, Method] = {}


def method_called(name: str) -> Method:
    """The allocator of this name. PlanError where there is none."""
    return registered("allocation", name, METHODS)


def relief(problem: Problem, rungs: Rungs) -> NDArray[np.float64]:
    """The error that the next unit of each group takes away, for what it costs."""
    spent, more = problem.totals(rungs), problem.totals(problem.wider(rungs))
    return (spent["error"] - more["error"]) / np.maximum(price(problem, spent, more), 1e-12)


def price(problem: Problem, spent: Totals, more: Totals) -> NDArray[np.float64]:
    """What the next unit of each group costs, in shares of the limits.

    spent, more: the totals without and with it, [] and [groups] each.
    """
    shares = [(more[kind] - spent[kind]) / limit for kind, limit in problem.limits.items()]
    return np.sum(shares, axis=0) if shares else np.zeros(len(problem.ladders))


def shortness(problem: Problem, rungs: Rungs) -> NDArray[np.float64]:
    """The share of each group that is gone."""
    return np.array([1 - table[rung] / table[0] for table, rung in zip(problem.width_tables, rungs, strict=True)])


def allocator(name: str, *, worth: Worth = relief, bounds_error: bool = False) -> Callable[[Allocator], Allocator]:
    """Register an allocator: a function of a Problem to a width of its ladder for each group, within all limits.

    worth: which group is first given units back, where some are left over.
    bounds_error: whether it heeds `Problem.max_error`; of one that does not, the smallest budget that keeps
        the error is searched for.
    """

    def register(function: Allocator) -> Allocator:
        METHODS[name] = Method(function, worth, bounds_error)
        return function

    return register
