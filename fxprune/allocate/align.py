"""Alignment: widths that hardware likes, where they cost nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from fxprune.allocate.methods import Method, Worth
from fxprune.allocate.problem import Problem, Rungs
from fxprune.allocate.solve import fill, solved, trim
from fxprune.errors import BudgetError
from fxprune.types import ChannelGroup

LIKED = (16, 8)  # AVX-512 computes 16 numbers at once, AVX2 8; tensor cores multiply tiles of 8 or 16
FREE = 1.02  # of what is to be least, error or FLOPs, at the best widths: no more may alignment cost


def aligned(problem_of: Callable[[int], Problem], method: Method, least: int = 1) -> tuple[Problem, Rungs]:
    """The widths that a method finds among the largest multiples that are free, or else among all.

    They use the budget up: the last few groups may be out of step.

    problem_of: the problem with ladders of multiples of a number of channels. It may raise BudgetError.
    least: the multiple that is kept wherever the limits can be kept with it.
    """
    try:
        problem = problem_of(least)
    except BudgetError:
        problem = problem_of(1)
    best = solved(problem, method)
    for multiple in LIKED:
        try:
            coarse = problem_of(multiple)
            widths = coarse.at(solved(coarse, method))
        except BudgetError:  # nothing so coarse keeps the limits
            continue
        rungs = _used_up(problem, problem.rungs(widths), method.worth, coarse)
        if problem.goal(rungs) <= FREE * problem.goal(best):
            return problem, rungs
    return problem, best


def in_units(multiple: int, group: ChannelGroup) -> int:
    """A multiple of channels in units of a group: a unit may be several channels, as an attention head is."""
    ids = group.offset + torch.arange(group.width)
    channels = min(int((source.ids[..., None] == ids).sum()) // group.width for source in group.sources)
    return multiple // math.gcd(multiple, max(1, channels))


def _used_up(problem: Problem, rungs: Rungs, worth: Worth, coarse: Problem) -> Rungs:
    """Single units for what is left of a budget: first to a group that is out of step already."""

    def few(problem: Problem, rungs: Rungs) -> NDArray[np.float64]:
        odd = [width not in coarse.ladders[name] for name, width in problem.at(rungs).items()]
        return np.where(odd, np.inf, worth(problem, rungs))

    return fill(problem, rungs, few) if problem.max_error is None else trim(problem, rungs)
