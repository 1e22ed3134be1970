"""Plans that are impossible, and what the error says."""

from __future__ import annotations

import pytest

import fxprune as fp
from fxprune.coupling.check import check_plan
from tests.networks import build, images


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"conv1.0.wieght": [0]}, r"names group 'conv1.0.wieght'.*did you mean 'conv1.0.weight'"),
        ({"conv1.0.weight": []}, r"keeps nothing of group 'conv1.0.weight': keep at least 2 of 8"),
        ({"conv1.0.weight": [0, 4, 4]}, r"keeps units \[4\] of group 'conv1.0.weight' more than once"),
        ({"conv3.0.weight": [0, 4]}, r"keeps units \[4\] of group 'conv3.0.weight', whose units are 0 to 3"),
        ({"conv3.0.weight": [-1]}, r"keeps units \[-1\]"),
        ({"conv1.0.weight": [0, 1, 4]}, r"keeps 1 to 2 units in the 2 blocks.*equally many.*0..3, 4..7"),
        ({"conv1.0.weight": [0, 1]}, r"keeps 0 to 2 units in the 2 blocks"),
    ],
)
def test_impossible_plans_are_refused(kept: dict[str, list[int]], message: str) -> None:
    gm = fp.capture(build("Grouped"), images())
    with pytest.raises(fp.PlanError, match=message):
        fp.shrink(gm, fp.Plan(kept))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"conv1.0.weight": [0, 0, 4]}, r"keeps 1 to 2 units in the 2 blocks.*equally many"),
        ({"conv1.0.weight": [0, 0]}, r"keeps 0 to 2 units in the 2 blocks"),
        ({"conv3.0.weight": [0, 4, 4]}, r"keeps units \[4, 4\] of group 'conv3.0.weight', whose units are 0 to 3"),
        ({"conv3.0.weight": []}, r"keeps nothing of group 'conv3.0.weight'"),
    ],
)
def test_impossible_plans_that_widen_are_refused(kept: dict[str, list[int]], message: str) -> None:
    coupling = fp.analyze(fp.capture(build("Grouped"), images()))
    with pytest.raises(fp.PlanError, match=message):
        check_plan(coupling, fp.Plan(kept, widens=True))


def test_blocks_count_every_copy() -> None:
    coupling = fp.analyze(fp.capture(build("Grouped"), images()))
    plan = check_plan(coupling, fp.Plan({"conv1.0.weight": [7, 5, 4, 0, 0, 0]}, heads=True, widens=True))
    assert (plan.kept, plan.heads, plan.widens) == ({"conv1.0.weight": (0, 0, 0, 4, 5, 7)}, True, True)
    counts = coupling.counts(plan)
    group = coupling.by_name["conv1.0.weight"]
    assert counts[0] == 1
    assert counts[group.offset : group.offset + 8].tolist() == [3, 0, 0, 0, 1, 1, 0, 1]
    assert int(counts.sum()) == len(counts) - 8 + 6
    assert coupling.mask(plan).tolist() == [count > 0 for count in counts.tolist()]


def test_units_are_sorted_and_missing_groups_stay_whole() -> None:
    coupling = fp.analyze(fp.capture(build("Grouped"), images()))
    assert check_plan(coupling, fp.Plan({"conv3.0.weight": [3, 1]})).kept == {"conv3.0.weight": (1, 3)}
