"""How large the steps of a descent shall be, as short runs tell."""

from __future__ import annotations

import math
from dataclasses import replace

from fxprune.calibrate.descent import Descent
from fxprune.calibrate.lesson import Lesson, Tensors
from fxprune.checkpoint import Checkpoint
from fxprune.progress import Measured

SHARE, FEWEST = 0.04, 10  # of the steps, that a short run takes, and how many at least
TELLING, MOST = 50, 0.125  # steps after which momentum no longer decides, and the share of all that they may take
RATES, SLOWER = 4, 3.0  # how many to try at most, each so many times smaller than the one before
IMAGES = 64  # held-out ones, by which a short run is judged


def at_measured_rate(descent: Descent, lesson: Lesson, start: Tensors) -> Descent:
    """The descent at the best of some rates, from its own downwards, as short runs from the same start tell.

    A network with depthwise convolutions bears steps ten times smaller than one without. The search ends where a
    smaller rate is worse than one that helps. The short runs come on top of the steps, and are reported with them; a
    descent of fewer steps than they take keeps its rate, and one that goes on that with which it began.

    The momentum is a mean over some 20 gradients. Before there are as many, steps follow the noise of single batches,
    and a small rate looks best for standing still.
    """
    length = short_length(descent.steps)
    before = RATES * length
    if descent.steps < before or lesson.says_nothing or not start:
        return descent
    total = before + descent.steps
    whole = replace(descent, report=_shifted(descent.report, before, total))
    known = descent.checkpoint.load(descent.stage, "rate")
    if known is not None:
        return replace(whole, rate=known["rate"])
    unmoved, best, rate = lesson.judge(start, IMAGES), math.inf, descent.rate
    for number in range(RATES):
        tried = descent.rate / SLOWER**number
        heard = _shifted(descent.report, number * length, total)
        short = replace(descent, steps=length, rate=tried, checkpoint=Checkpoint(), report=heard)
        loss = lesson.judge(short.short_run(lesson, start, min(best, unmoved)), IMAGES)
        if loss > best and best < unmoved:
            break
        if loss <= best:
            best, rate = loss, tried
    return replace(whole, rate=rate)


def short_length(steps: int) -> int:
    """How many steps the short runs take for a descent of so many."""
    return max(FEWEST, int(SHARE * steps), min(TELLING, int(MOST * steps)))


def _shifted(report: Measured, before: int, total: int) -> Measured:
    """A report of steps that others come before and after."""
    return lambda done, _, error: report(before + done, total, error)
