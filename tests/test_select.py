"""Selection: the units that leave last stay, block by block; a width that cannot be is refused."""

from __future__ import annotations

import pytest

from fxprune.capture import capture
from fxprune.closed_form.removal import Removal
from fxprune.coupling import analyze
from fxprune.errors import PlanError
from fxprune.select import select
from fxprune.types import Coupling
from tests.networks import build, images


@pytest.fixture
def coupling() -> Coupling:
    return analyze(capture(build("Plain"), (images(),)))


def test_the_last_to_leave_stay(coupling: Coupling) -> None:
    removals = {"fc1.weight": Removal((3, 0, 4, 1, 2), (0, 1, 2, 3, 4, 5))}
    assert select(coupling, removals, {"fc1.weight": 2}).kept == {"fc1.weight": (1, 2)}
    assert select(coupling, removals, {"fc1.weight": 5}).kept == {}
    plan = select(coupling, removals, {"fc1.weight": 3}, [((2, 3, 8, 8), "float32")])
    assert plan.kept == {"fc1.weight": (1, 2, 4)} and plan.inputs == (((2, 3, 8, 8), "float32"),)


def test_blocks_keep_equally_many() -> None:
    grouped = analyze(capture(build("Grouped"), (images(),)))
    group = next(group for group in grouped.groups if group.blocks)
    order = tuple(unit for units in zip(*group.blocks, strict=True) for unit in units)
    rounds = len(group.blocks[0])
    removals = {group.name: Removal(order, tuple(map(float, range(rounds + 1))), group.step)}
    kept = set(select(grouped, removals, {group.name: group.width - group.step}).kept[group.name])
    assert {len(kept & set(block)) for block in group.blocks} == {rounds - 1}
    with pytest.raises(
        PlanError, match=rf"{group.name}: cannot keep 1 of {group.width} units in {group.step} equal blocks"
    ):
        select(grouped, removals, {group.name: 1})


@pytest.mark.parametrize("width", [0, -1, 6])
def test_a_width_out_of_range_is_refused(coupling: Coupling, width: int) -> None:
    with pytest.raises(PlanError, match=f"fc1.weight: cannot keep {width} of 5 units"):
        select(coupling, {}, {"fc1.weight": width})


def test_an_unknown_group_is_refused(coupling: Coupling) -> None:
    with pytest.raises(PlanError, match="no group is called 'fc9'; there are: conv1.weight, conv2.weight, fc1.weight"):
        select(coupling, {}, {"fc9": 1})
