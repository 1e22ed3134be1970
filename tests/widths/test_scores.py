"""From scores to widths: the threshold by hand, floors, blocks, what has left, and sums over the parts of a unit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fxprune.budget import Budget
from fxprune.errors import PlanError
from fxprune.types import ChannelGroup, Coupling, Source
from fxprune.widths.scores import by_scores, choice_after, fewest, ranked, unit_scores
from fxprune.widths.setting import Setting
from tests.widths.settings import FAMILIES, check, family, setting_of

A, B = "0.weight", "1.weight"


def chain(budget: float, least: dict[str, float] | None = None, most: dict[str, float] | None = None) -> Setting:
    """Two groups of three and four units, without biases: 20 a + a b + 20 b parameters of 152."""
    sizes = (20, 3, 4, 20)
    network = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)))
    return setting_of(network, torch.randn(2, 20), Budget(params=budget), least=least, most=most)


def scores(a: list[float], b: list[float]) -> dict[str, Tensor]:
    return {A: torch.tensor(a, dtype=torch.float64), B: torch.tensor(b, dtype=torch.float64)}


SCORES = scores([3.0, 1.0, 2.5], [0.5, 10.0, 4.0, 2.0])


def test_one_threshold_for_all_groups() -> None:
    """0.5, 1 and 2 leave, which makes 2 x 2; then half of 2.5 at 62 parameters: 20 a + 2 a + 40 with a = 1.5 is 73."""
    setting = chain(20 * 1.5 + 1.5 * 2 + 20 * 2)
    choice = by_scores(setting, SCORES)
    check(setting, choice)
    assert choice.order == {A: (1, 2, 0), B: (0, 3, 2, 1)}
    assert choice.widths == pytest.approx({A: 1.5, B: 2}, abs=0.51 / 22)
    assert choice.widths[B] == 2


def test_the_scale_of_a_group_counts() -> None:
    """Scores are not relative to the group: a group whose units all score low comes to its least width first."""
    choice = by_scores(chain(20 * 1 + 4 + 80), scores([0.1, 0.2, 0.3], [1.0, 2.0, 3.0, 4.0]))
    assert choice.widths == pytest.approx({A: 1, B: 4}, abs=0.51 / 22)


def test_no_group_falls_below_its_least_width() -> None:
    low = scores([0.1, 0.2, 0.3], [1.0, 2.0, 3.0, 4.0])
    choice = by_scores(chain(20 * 2 + 2 * 3 + 60, least={A: 2, B: 1}), low)
    assert choice.widths == pytest.approx({A: 2, B: 3}, abs=0.51 / 22)
    half = by_scores(chain(20 * 1.5 + 1.5 * 3 + 60, least={A: 1.5, B: 1}), low)
    assert half.widths == pytest.approx({A: 1.5, B: 3}, abs=0.51 / 22)


def test_a_group_that_must_be_narrower_is_so_whatever_it_scores() -> None:
    choice = by_scores(chain(1.0, most={A: 3, B: 2}), SCORES)
    assert choice.widths == {A: 3, B: 2}


def test_groups_that_may_grow_stay_as_they_are() -> None:
    assert by_scores(chain(500, most={A: 30, B: 40}), SCORES).widths == {A: 3, B: 4}


def test_units_that_have_left_come_first_whatever_they_score_now() -> None:
    setting = chain(0.5)
    gone = ranked(setting, SCORES)[:2]
    assert [(step.group, step.units, step.score) for step in gone] == [(B, (0,), 0.5), (A, (1,), 1.0)]
    steps = ranked(setting, scores([0.1, 99.0, 0.2], [99.0, 0.3, 0.4, 0.6]), gone)
    assert [(step.group, step.units, step.size) for step in steps] == [
        (B, (0,), 1), (A, (1,), 1), (A, (0,), 1), (B, (1,), 1), (B, (2,), 1), (A, (2,), 0), (B, (3,), 0),
    ]  # fmt: skip
    assert choice_after(setting, steps, 2.5).widths == {A: 1.5, B: 3}
    assert choice_after(setting, steps, fewest(setting, steps)).order == {A: (1, 0, 2), B: (0, 1, 2, 3)}


def test_the_worst_of_each_block_leave_together_and_their_scores_add_up() -> None:
    setting = family("Grouped", Budget(params=0.5))
    known = {group.name: torch.full((group.width,), 99.0, dtype=torch.float64) for group in setting.coupling.groups}
    group = setting.coupling.by_name["conv2.0.weight"]
    assert group.blocks == ((0, 1, 2, 3), (4, 5, 6, 7))
    known[group.name] = torch.tensor([3.0, 1.0, 4.0, 2.0, 10.0, 40.0, 30.0, 20.0], dtype=torch.float64)
    steps = [step for step in ranked(setting, known) if step.group == group.name]
    assert [(step.units, step.score) for step in steps] == [((1, 4), 11), ((3, 7), 22), ((0, 6), 33), ((2, 5), 44)]
    assert [step.size for step in steps] == [2, 2, 2, 0]
    check(setting, by_scores(setting, known))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(wrong: float) -> None:
    with pytest.raises(
        PlanError, match="the scores of 1.weight hold NaN or infinity: look at the weights, and at data="
    ):
        by_scores(chain(0.5), scores([1.0, 2.0, 3.0], [1.0, wrong, 3.0, 4.0]))


@pytest.mark.parametrize("name", [*FAMILIES, "Shuffle", "Tied", "LayerScaled"])
def test_the_score_of_a_unit_is_the_sum_over_its_slices(name: str) -> None:
    setting = family(name, Budget(params=0.5))
    saliency = {param: torch.randn(value.shape) for param, value in setting.gm.named_parameters()}
    for group in setting.coupling.groups:
        found = unit_scores(setting.coupling, saliency)[group.name]
        assert found.dtype == torch.float64
        for unit in range(group.width):
            assert float(found[unit]) == pytest.approx(by_hand(group, unit, saliency), abs=1e-5)


def by_hand(group: ChannelGroup, unit: int, saliency: dict[str, Tensor]) -> float:
    """The sum over all elements of matrices and kernels in a slice of the unit, each once."""
    parts = [part for part in group.slices(unit) if part.param in saliency and saliency[part.param].ndim > 1]
    marked = {part.param: torch.zeros(saliency[part.param].shape, dtype=torch.bool) for part in parts}
    for part in parts:
        sizes = marked[part.param].shape
        sides = [torch.tensor(side or range(size)) for side, size in zip(part.index, sizes, strict=True)]
        marked[part.param][torch.meshgrid(*sides, indexing="ij")] = True
    return sum(float(saliency[param][mask].sum()) for param, mask in marked.items())


def test_an_element_in_the_row_and_the_column_of_a_unit_counts_once() -> None:
    ids = torch.arange(1, 4)
    sources = (Source("w", ids[:, None], "produces"), Source("w", ids[None], "consumes"))
    coupling = Coupling((ChannelGroup("g", 3, (), (), 1, sources),), {}, {}, {}, {})
    values = torch.tensor([[1.0, 2, 4], [8, 16, 32], [64, 128, 256]])
    assert unit_scores(coupling, {"w": values})["g"].tolist() == [
        1 + 2 + 4 + 8 + 64,
        2 + 8 + 16 + 32 + 128,
        4 + 32 + 64 + 128 + 256,
    ]


def test_vectors_count_only_where_there_is_nothing_else() -> None:
    sources = (Source("w", torch.arange(1, 3)[:, None], "produces"), Source("b", torch.arange(1, 3), "produces"))
    groups = (ChannelGroup("both", 2, (), (), 1, sources), ChannelGroup("alone", 2, (), (), 1, sources[1:]))
    coupling = Coupling(groups, {}, {}, {}, {})
    found = unit_scores(coupling, {"w": torch.tensor([[1.0], [2.0]]), "b": torch.tensor([10.0, 20.0])})
    assert {name: values.tolist() for name, values in found.items()} == {"both": [1, 2], "alone": [10, 20]}
