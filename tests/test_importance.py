"""Importances: the formula by hand, blocks, and what happens without data."""

from __future__ import annotations

import pytest
import torch

from fxprune.capture import capture
from fxprune.closed_form.removal import Removal, System
from fxprune.coupling import analyze
from fxprune.importance import IMPORTANCES, importance, magnitude, second_order
from fxprune.types import ChannelGroup
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


def test_an_importance_is_added_by_a_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(IMPORTANCES, "backwards", raising=False)

    @importance("backwards")
    def backwards(group: ChannelGroup, tensors: object, systems: object) -> Removal:
        return Removal(tuple(reversed(range(group.width))), tuple(map(float, range(group.width + 1))))

    assert IMPORTANCES.pop("backwards") is backwards
