"""Rounding: whole widths that keep the budget, leave no room, and stay near to what was wanted."""

from __future__ import annotations

import pytest

import fxprune as fp
from fxprune.allocate import ladder_between
from fxprune.types import ChannelGroup
from fxprune.widths import METHODS, Choice, Setting, rounded
from tests.widths.settings import FAMILIES, family


def ladders_of(setting: Setting, multiple_of: int = 1) -> dict[str, list[int]]:
    groups = setting.coupling.groups
    return {g.name: ladder_between(g, multiple_of, setting.least[g.name], setting.most[g.name]) for g in groups}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [fp.Budget(params=0.5), fp.Budget(flops=0.7, params=0.8)])
def test_every_method_ends_at_the_same_budget(name: str, method: str, budget: fp.Budget) -> None:
    setting = family(name, budget)
    ladders = ladders_of(setting)
    widths = rounded(setting, METHODS[method](setting), ladders)
    assert setting.fits(widths)
    for group in setting.coupling.groups:
        assert widths[group.name] % group.step == 0
        assert 0 < widths[group.name] <= group.width
        wider = {**widths, group.name: widths[group.name] + group.step}
        assert widths[group.name] == group.width or not setting.fits(wider), f"{group.name} could have more"


def test_whole_widths_that_fit_stay_as_they_are() -> None:
    setting = family("Residual", fp.Budget(params=0.999))
    wanted = {"stem.0.weight": 4, "conv1.0.weight": 5}
    assert rounded(setting, Choice(wanted), ladders_of(setting)) == wanted


def test_a_solvers_rounding_is_no_unit() -> None:
    setting = family("Residual", fp.Budget(params=1.0))
    wanted = {"stem.0.weight": 4 - 1e-7, "conv1.0.weight": 6 - 1e-7}
    assert rounded(setting, Choice(wanted), ladders_of(setting)) == {"stem.0.weight": 4, "conv1.0.weight": 6}


def group(width: int, blocks: tuple[tuple[int, ...], ...] = ()) -> ChannelGroup:
    return ChannelGroup("g", width, blocks, (), 1, ())


def test_ladders() -> None:
    assert ladder_between(group(10), 4, 1, 10) == [10, 8, 4]
    assert ladder_between(group(10), 4, 5, 10) == [10, 8]
    assert ladder_between(group(10), 1, 10, 10) == [10]
    assert ladder_between(group(6, ((0, 1, 2), (3, 4, 5))), 1, 1, 6) == [6, 4, 2]
    assert ladder_between(group(6, ((0, 1, 2), (3, 4, 5))), 3, 1, 6) == [6]
    assert ladder_between(group(5), 1, 4, 8) == [8, 7, 6, 5, 4]
    assert ladder_between(group(5), 4, 1, 10) == [8, 5, 4]
