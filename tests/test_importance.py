"""Importances: the formulas by hand, blocks, what happens without data, and whether they need it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fxprune.capture import capture
from fxprune.closed_form.removal import Removal, System
from fxprune.coupling import analyze
from fxprune.errors import PlanError
from fxprune.importance import (
    IMPORTANCES,
    Importance,
    fpgm,
    importance,
    importance_called,
    magnitude,
    needs_images,
    random,
    second_order,
    taylor,
)
from fxprune.types import ChannelGroup, Source
from tests.networks import NETWORKS, build, images


def test_magnitude_is_the_formula() -> None:
    model = build("Plain")
    gm = capture(model, (images(),))
    group = analyze(gm).by_name["fc1.weight"]
    rows, columns = model.fc1.weight.norm(dim=1), model.fc2.weight.norm(dim=0)  # type: ignore[union-attr, operator]
    scores = rows / rows.mean() + columns / columns.mean()
    removal = magnitude(group, dict(gm.named_parameters()), ())
    assert removal.order == tuple(scores.argsort().tolist())
    squares = scores.sort().values.square()
    assert removal.errors == pytest.approx([0, *(squares.cumsum(0) / squares.sum()).tolist()], rel=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", IMPORTANCES)
def test_every_unit_leaves_once_and_blocks_in_step(name: str, kind: str) -> None:
    gm = capture(build(name), (images(),))
    tensors = dict(gm.named_parameters()) | dict(gm.named_buffers())
    for group in analyze(gm).groups:
        removal = IMPORTANCES[kind](group, tensors, ())
        assert sorted(removal.order) == list(range(group.width))
        assert removal.step == group.step and len(removal.errors) == group.width // group.step + 1
        block = {unit: number for number, members in enumerate(group.blocks) for unit in members}
        for start in range(0, group.width, group.step):
            units = removal.order[start : start + group.step]
            assert not block or sorted(block[unit] for unit in units) == list(range(group.step))


def test_second_order_goes_by_the_maps_and_falls_back_to_magnitude() -> None:
    gm = capture(build("Plain"), (images(),))
    group = analyze(gm).by_name["fc1.weight"]
    tensors = dict(gm.named_parameters())
    covariance = torch.diag(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]))
    maps = [System(covariance, torch.ones(5, 2), torch.arange(5))]
    assert second_order(group, tensors, maps).order == (1, 3, 4, 2, 0)
    assert second_order(group, tensors, ()) == magnitude(group, tensors, ())


def test_units_that_no_map_reads_count_by_magnitude_as_much_as_those_that_are_read() -> None:
    gm = capture(build("Plain"), (images(),))
    group = analyze(gm).by_name["fc1.weight"]
    tensors = dict(gm.named_parameters())
    maps = [System(torch.eye(3), torch.tensor([[4.0], [1.0], [2.0]]), torch.tensor([0, 1, 2]))]
    removal = second_order(group, tensors, maps)
    scores = dict(zip(magnitude(group, tensors, ()).order, range(group.width), strict=True))
    unread = [unit for unit in removal.order if unit in (3, 4)]
    assert unread == sorted((3, 4), key=scores.__getitem__)
    assert [unit for unit in removal.order if unit < 3] == [1, 2, 0]
    assert removal.errors[-1] == pytest.approx(21 * 5 / 3 * 1.01, rel=1e-2)  # as much a unit as those that are read


def test_taylor_is_the_formula() -> None:
    gm = capture(build("Plain"), (images(),))
    group = analyze(gm).by_name["fc1.weight"]
    covariance = torch.diag(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])) + 0.5
    weights = torch.tensor([[1.0], [2.0], [0.5], [1.0], [0.1]])
    maps = [System(covariance, weights, torch.arange(5)), System(torch.eye(2), torch.ones(2, 3), torch.tensor([4, -1]))]
    scores = [5.5, 6.0, 1.125, 2.5, 0.035 + 3]
    removal = taylor(group, dict(gm.named_parameters()), maps)
    assert removal.order == (2, 3, 4, 0, 1)
    assert removal.errors == pytest.approx([0, *torch.tensor(sorted(scores)).cumsum(0).tolist()], rel=1e-5)


@pytest.mark.parametrize("kind", [taylor, second_order])
def test_a_group_that_no_map_reads_goes_by_magnitude(kind: Importance) -> None:
    gm = capture(build("Plain"), (images(),))
    group = analyze(gm).by_name["fc1.weight"]
    tensors = dict(gm.named_parameters())
    assert kind(group, tensors, ()) == magnitude(group, tensors, ())
    partly = kind(group, tensors, [System(torch.eye(2), torch.ones(2, 1) * 100, torch.tensor([0, 1]))])
    unread = [unit for unit in partly.order if unit > 1]
    assert unread == [unit for unit in magnitude(group, tensors, ()).order if unit > 1]
    assert partly.errors[-1] == pytest.approx(2e4 * 5 / 2, rel=0.02)  # as much a unit as those that are read


def test_fpgm_is_the_formula() -> None:
    model = build("Plain")
    gm = capture(model, (images(),))
    coupling = analyze(gm)
    filters = model.conv2.weight.detach().flatten(1).double()  # type: ignore[union-attr, operator]
    distances = (filters[:, None] - filters).norm(dim=2).sum(1)
    removal = fpgm(coupling.by_name["conv2.weight"], dict(gm.named_parameters()), ())
    assert removal.order == tuple(distances.argsort().tolist())
    squares = distances.sort().values.square()
    assert removal.errors == pytest.approx([0, *(squares.cumsum(0) / squares.sum()).tolist()], rel=1e-5)


def test_fpgm_takes_what_others_stand_in_for_first() -> None:
    gm = capture(build("Plain"), (images(),))
    group = analyze(gm).by_name["conv2.weight"]
    tensors = dict(gm.named_parameters())
    filters = torch.zeros_like(tensors["conv2.weight"])
    filters[:, 0, 0, 0] = torch.tensor([0.0, 1.0, 1.1, 9.0])[: len(filters)]
    removal = fpgm(group, {**tensors, "conv2.weight": filters}, ())
    assert set(removal.order[:2]) == {1, 2} and removal.order[-1] == 3  # the filter of zeros has the least norm


def test_fpgm_sees_all_positions_of_a_unit() -> None:
    """The rows of a unit that lies in several places, in the order of the units."""
    ids = torch.tensor([7, 6, 5, 7, 6, 5, 0])[:, None]
    group = ChannelGroup("g", 3, (), (), 5, (Source("w", ids, "produces"),))
    weight = torch.arange(14.0).view(7, 2).square()
    gathered = torch.stack([torch.cat([weight[2 - unit], weight[5 - unit]]) for unit in range(3)]).double()
    distances = (gathered[:, None] - gathered).norm(dim=2).sum(1)
    squares = distances.sort().values.square()
    removal = fpgm(group, {"w": weight}, ())
    assert removal.order == tuple(distances.argsort().tolist())
    assert removal.errors == pytest.approx([0, *(squares.cumsum(0) / squares.sum()).tolist()])


def test_random_depends_on_the_name_alone() -> None:
    gm = capture(build("Residual"), (images(),))
    first, second = analyze(gm).groups[:2]
    assert random(first, {}, ()) == random(first, {}, ())
    assert random(replace(first, name=second.name), {}, ()) != random(first, {}, ())
    errors = random(first, {}, ()).errors
    assert errors == pytest.approx([index / (len(errors) - 1) for index in range(len(errors))])


@pytest.mark.parametrize("kind", IMPORTANCES)
def test_errors_never_fall_and_data_free_ones_are_shares(kind: str) -> None:
    gm = capture(build("Grouped"), (images(),))
    tensors = dict(gm.named_parameters()) | dict(gm.named_buffers())
    for group in analyze(gm).groups:
        errors = IMPORTANCES[kind](group, tensors, ()).errors
        assert list(errors) == sorted(errors) and errors[0] == 0 and errors[-1] == pytest.approx(1)


def test_the_registry_says_which_need_images() -> None:
    assert [name for name in IMPORTANCES if needs_images(name)] == ["second_order", "taylor"]
    with pytest.raises(PlanError, match="importance 'luck' is not known; there are: magnitude, second_order"):
        importance_called("luck")


def test_an_importance_is_added_by_a_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(IMPORTANCES, "backwards", raising=False)

    @importance("backwards", needs_images=True)
    def backwards(group: ChannelGroup, tensors: object, systems: object) -> Removal:
        return Removal(tuple(reversed(range(group.width))), tuple(map(float, range(group.width + 1))))

    assert needs_images("backwards")
    importance("backwards")(backwards)
    assert not needs_images("backwards")
    assert IMPORTANCES.pop("backwards") is backwards
