"""What is handed on beside the widths: from the solution that a method has found, and not from another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fxprune as fp
from fxprune.widths import GROWTH, METHODS, SLACK, Configured, Setting, configured, solved
from fxprune.widths.setting import Choice
from tests.widths.settings import family

BUDGET = fp.Budget(params=0.6)


def record(setting: Setting, choice: Choice) -> Configured:
    return configured("precrop", setting, choice, {name: int(width) for name, width in choice.widths.items()})


@pytest.mark.parametrize("name", ["Residual", "Dense"])
@pytest.mark.parametrize("grows", [False, True])
def test_precrop_hands_on_the_solution_that_its_widths_are_of(name: str, grows: bool) -> None:
    setting = family(name, BUDGET)
    if grows:
        wide = {group: GROWTH * width for group, width in setting.most.items()}
        setting = replace(setting, most=wide, slack=SLACK)
    choice = METHODS["precrop"](setting)
    assert choice.optimum is not None
    again = solved(setting)
    assert np.array_equal(choice.optimum.logs, again.logs) and choice.optimum.multipliers == again.multipliers
    assert record(setting, choice) == record(setting, choice._replace(optimum=None))


def test_what_is_handed_on_is_not_solved_again() -> None:
    setting = family("Residual", BUDGET)
    choice = METHODS["precrop"](setting)
    assert choice.optimum is not None
    other = record(setting, choice._replace(optimum=replace(choice.optimum, solver="SLSQP")))
    assert other.notes == ("the convex program was solved by SLSQP, for Clarabel gave up",)


def test_beside_a_baseline_stands_what_the_program_would_reach() -> None:
    setting = family("Residual", BUDGET)
    choice = METHODS["uniform"](setting)
    assert choice.optimum is None
    found = record(setting, choice).objective
    assert found["channels"] == record(setting, METHODS["precrop"](setting)).objective["channels"]
    assert found["channels"] > found["wanted widths"]
