"""SNIP and GraSP against finite differences and a whole Hessian; nothing is touched; refusals."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fxprune.budget import Budget
from fxprune.errors import PlanError
from fxprune.widths.gradients import grasp, preserved_flow, sensitivity, snip
from fxprune.widths.scores import unit_scores
from fxprune.widths.setting import Method, Setting
from tests.widths.settings import FAMILIES, check, family, setting_of

LABELS = torch.tensor([0, 1, 2, 1])


class Tiny(nn.Module):
    """Smooth, in float64, with a norm that differs between the modes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


@pytest.fixture
def tiny() -> Setting:
    inputs = torch.randn(4, 3, dtype=torch.float64)
    return setting_of(Tiny().eval(), inputs, Budget(params=0.6), data=(inputs, LABELS))


def loss_at(setting: Setting, weights: dict[str, Tensor]) -> Tensor:
    assert setting.model is not None and setting.data is not None
    inputs, labels = setting.data
    return F.cross_entropy(functional_call(copy.deepcopy(setting.model).train(), weights, (inputs,)), labels)


def parameters(setting: Setting) -> dict[str, Tensor]:
    assert setting.model is not None
    return {name: value.detach().clone() for name, value in setting.model.named_parameters()}


@pytest.mark.parametrize("kind", [snip, grasp])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_within_bounds(name: str, kind: Method) -> None:
    setting = family(name, Budget(params=0.5))
    choice = kind(setting)
    check(setting, choice)
    assert choice.order and kind(setting) == choice


def test_snip_is_the_slope_of_the_loss_in_the_size_of_each_weight(tiny: Setting) -> None:
    weights, found = parameters(tiny), sensitivity(tiny)
    for name, value in weights.items():
        for index in range(value.numel()):
            up, down = value.clone(), value.clone()
            up.view(-1)[index] *= 1 + 1e-5
            down.view(-1)[index] *= 1 - 1e-5
            slope = (loss_at(tiny, {**weights, name: up}) - loss_at(tiny, {**weights, name: down})) / 2e-5
            assert float(found[name].view(-1)[index]) == pytest.approx(abs(float(slope)), abs=1e-8)


def test_the_score_of_snip_bounds_what_scaling_a_unit_does_to_the_loss(tiny: Setting) -> None:
    """The slope of the loss when all weights of a unit are scaled is their sum with signs: the score is at least it."""
    weights, scores = parameters(tiny), unit_scores(tiny.coupling, sensitivity(tiny))
    (group,) = tiny.coupling.groups
    for unit in range(group.width):
        losses = []
        for factor in (1 + 1e-5, 1 - 1e-5):
            scaled = {name: value.clone() for name, value in weights.items()}
            scaled["first.weight"][unit] *= factor
            scaled["last.weight"][:, unit] *= factor
            losses.append(float(loss_at(tiny, scaled)))
        assert abs(losses[0] - losses[1]) / 2e-5 <= float(scores[group.name][unit]) + 1e-8


def test_grasp_is_the_product_with_the_whole_hessian(tiny: Setting) -> None:
    weights = parameters(tiny)
    sizes = [value.numel() for value in weights.values()]
    flat = torch.cat([value.flatten() for value in weights.values()])

    def loss(vector: Tensor) -> Tensor:
        parts = zip(weights.items(), vector.split(sizes), strict=True)
        return loss_at(tiny, {name: part.view_as(value) for (name, value), part in parts})

    hessian = torch.autograd.functional.hessian(loss, flat)
    gradient = torch.autograd.functional.jacobian(loss, flat)
    assert isinstance(hessian, Tensor) and isinstance(gradient, Tensor)
    expected = flat * (hessian @ gradient)
    found = torch.cat([value.flatten() for value in preserved_flow(tiny).values()])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert float(expected.min()) < 0 < float(expected.max())


def test_units_whose_removal_raises_the_gradient_flow_leave_before_those_where_it_falls(tiny: Setting) -> None:
    (group,) = tiny.coupling.groups
    order = grasp(tiny).order[group.name]
    first, last = (change_of_flow(tiny, unit) for unit in (order[0], order[-1]))
    scores = unit_scores(tiny.coupling, preserved_flow(tiny))[group.name]
    assert first == pytest.approx(-2 * float(scores[order[0]]), rel=1e-3)
    assert last == pytest.approx(-2 * float(scores[order[-1]]), rel=1e-3)
    assert first > last


def change_of_flow(setting: Setting, unit: int) -> float:
    """The slope of the squared norm of the gradient as the weights of a unit become smaller."""
    flows = []
    for factor in (1 - 1e-5, 1 + 1e-5):
        weights = parameters(setting)
        weights["first.weight"][unit] *= factor
        weights["last.weight"][:, unit] *= factor
        leaves = {name: value.requires_grad_() for name, value in weights.items()}
        slopes = torch.autograd.grad(loss_at(setting, leaves), list(leaves.values()))
        flows.append(sum(float(slope.square().sum()) for slope in slopes))
    return (flows[0] - flows[1]) / 2e-5


class Dropped(nn.Module):
    """Dropout and statistics, of which training changes something, and two ways to give the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        y = F.dropout(torch.relu(self.norm(self.first(x) * scale)), 0.5, self.training)
        return self.last(y), x


@pytest.mark.parametrize("kind", [snip, grasp])
def test_model_and_random_state_stay_as_they_were(kind: Method) -> None:
    model, example = Dropped().eval(), (torch.randn(4, 3), torch.ones(4, 1))
    model.last.weight.requires_grad_(False)
    setting = setting_of(model, example, Budget(params=0.5), data=(example, LABELS))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        first = kind(setting)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.rand(3)
    assert first.order and kind(setting) == first  # the units that dropout drops are those of the seed
    assert kind(replace(setting, seed=1)) != first
    assert kind(replace(setting, data=({"x": example[0], "scale": example[1]}, LABELS))) == first


@pytest.mark.parametrize("kind", [snip, grasp])
def test_what_is_missing_is_named(kind: Method, tiny: Setting) -> None:
    name = kind.__name__
    with pytest.raises(PlanError, match=rf"method='{name}' looks at a loss: give data=\(inputs, labels\), a batch of"):
        kind(replace(tiny, data=None))
    with pytest.raises(PlanError, match=f"method='{name}' takes gradients in training mode: give the network as an nn"):
        kind(replace(tiny, model=None))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(4, 3), r"data= must be a pair, \(inputs, labels\), not Tensor"),
        (
            (torch.zeros(4, 5, dtype=torch.float64), LABELS),
            "does not fit the network at .*self.first.*: RuntimeError: .*mat1",
        ),
        (
            (torch.zeros(4, 3, dtype=torch.float64), LABELS + 1),
            "does not fit the network.*: IndexError: Target 3 is out",
        ),
        ((torch.zeros(4, 3, dtype=torch.float64), LABELS[:2]), "does not fit the network.*batch_size"),
        (
            (torch.full((4, 3), torch.nan, dtype=torch.float64), LABELS),
            "the scores of first.weight hold NaN or infinity",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused(data: Any, message: str, tiny: Setting) -> None:
    with pytest.raises(PlanError, match=message):
        snip(replace(tiny, data=data))


class Once(Tiny):
    """Its forward has a first derivative only."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.hardsigmoid.default(super().forward(x))


def test_a_network_that_has_no_second_derivative_is_refused(tiny: Setting) -> None:
    once = replace(tiny, model=Once())
    check(once, snip(once))
    with pytest.raises(
        PlanError, match="method='grasp' differentiates the network twice; choose another method: deriv"
    ):
        grasp(once)
