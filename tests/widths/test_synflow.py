"""SynFlow: the flow by hand, its conservation, rounds with new scores, blocks, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fxprune.budget import Budget
from fxprune.errors import PlanError
from fxprune.widths.scores import ranked, unit_scores
from fxprune.widths.setting import Setting
from fxprune.widths.synflow import flows, synflow, without
from tests.networks import conv_norm
from tests.widths.settings import FAMILIES, check, family, setting_of


def chain(*weights: Tensor) -> nn.Sequential:
    """Linear layers with these weights, and ReLU between them."""
    layers = [nn.Linear(weight.shape[1], weight.shape[0], bias=False) for weight in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data = weight
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]


def magnitudes(setting: Setting) -> dict[str, Tensor]:
    return {name: value.detach().double().abs() for name, value in setting.gm.named_parameters()}


def test_the_score_of_a_unit_is_twice_the_sum_of_the_paths_through_it() -> None:
    first, second = (
        torch.tensor([[1.0, -2.0], [3.0, 0.5], [-1.0, 1.0]]),
        torch.tensor([[2.0, -1.0, 4.0], [1.0, 1.0, 0.0]]),
    )
    setting = setting_of(chain(first, second), torch.randn(2, 2), Budget(params=0.5))
    through = torch.tensor([3.0 * 3, 3.5 * 2, 2.0 * 4])  # the sum of the row times the sum of the column
    scores = unit_scores(setting.coupling, flows(setting.gm, magnitudes(setting)))["0.weight"]
    assert scores.tolist() == pytest.approx((2 * through / through.sum()).tolist())
    assert synflow(setting).order == {"0.weight": (1, 2, 0)}


class Plain(nn.Module):
    """Convolutions with norms, pooling, a grouped convolution; no shortcut, and no biases but those of norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv_norm(3, 6), conv_norm(6, 8, 1), conv_norm(8, 4, 3, groups=2)
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.max_pool2d(torch.relu(self.first(x)), 2)))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


def test_the_flow_through_every_layer_is_the_same() -> None:
    """Theorem 1 of the paper; and what flows into a unit flows out of it, theorem 2."""
    setting = setting_of(Plain(), torch.randn(2, 3, 8, 8), Budget(params=0.5))
    found = flows(setting.gm, magnitudes(setting))
    layers = ("first.0.weight", "second.0.weight", "third.0.weight", "head.weight")
    assert [float(found[name].sum()) for name in layers] == pytest.approx([1.0] * 4, rel=1e-12)
    assert all(float(flow.sum()) == 0 for name, flow in found.items() if name not in layers)
    into, out = found["first.0.weight"].sum((1, 2, 3)), found["second.0.weight"].sum((0, 2, 3))
    torch.testing.assert_close(into, out, rtol=1e-12, atol=0)
    torch.testing.assert_close(found["third.0.weight"].sum((1, 2, 3)), found["head.weight"].sum(0), rtol=1e-12, atol=0)


# Paths by hidden units: 0 reads the input with 1, 1 with 0.5; of the second layer, each row is what it reads of both.
CUT = (
    torch.tensor([[1.0], [0.5]]),
    torch.tensor([[0.1, 1.0], [0.55, 0.0], [0.9, 0.0], [1.5, 0.0]]),
    torch.ones(1, 4),
)


def test_scores_are_new_in_every_round() -> None:
    """The paths through the units of the second layer are 0.1 + 0.5, 0.55, 0.9, 1.5; of the first, 3.05 and 0.5.

    Once unit 1 of the first has left, 0.1 is left of the first 0.6.
    """
    setting = setting_of(chain(*CUT), torch.randn(2, 1), Budget(params=8))
    first, second = "0.weight", "2.weight"
    at_first = unit_scores(setting.coupling, flows(setting.gm, magnitudes(setting)))
    assert at_first[second].argsort().tolist() == [1, 0, 2, 3]
    choice = synflow(setting)
    check(setting, choice)
    assert choice.order == {first: (1, 0), second: (0, 1, 2, 3)}
    assert choice.widths[first] == 1


@pytest.mark.parametrize("name", [*FAMILIES, "Shuffle", "Tied", "LayerScaled"])
def test_every_family_is_within_bounds(name: str) -> None:
    setting = family(name, Budget(params=0.5))
    before = {key: value.clone() for key, value in setting.gm.state_dict().items()}
    choice = synflow(setting)
    check(setting, choice)
    assert choice.order
    assert all(torch.equal(value, before[key]) for key, value in setting.gm.state_dict().items())


def test_the_floor_holds_in_every_round() -> None:
    least = {"conv1.weight": 4, "conv2.weight": 4, "fc1.weight": 2}
    setting = family("Plain", Budget(params=0.75), least=least)
    check(setting, synflow(setting))
    smallest = replace(setting, limits=setting.spent(least))
    assert synflow(smallest).widths == pytest.approx(least, abs=0.1)


def test_a_budget_that_holds_already_changes_nothing() -> None:
    setting = family("Residual", Budget(params=1.0))
    assert synflow(setting).widths == setting.dense


def test_units_that_have_left_have_zeros_everywhere() -> None:
    setting = family("Residual", Budget(params=0.5))
    scores = {group.name: torch.arange(group.width, dtype=torch.float64) for group in setting.coupling.groups}
    gone = ranked(setting, scores)[:3]
    left = without(magnitudes(setting), setting.coupling, gone)
    expected = magnitudes(setting)
    for step in gone:
        for part in setting.coupling.by_name[step.group].slices(*step.units):
            if part.param in expected:
                value = expected[part.param]
                sides = [torch.tensor(s or range(n)) for s, n in zip(part.index, value.shape, strict=True)]
                value[torch.meshgrid(*sides, indexing="ij")] = 0
    assert all(torch.equal(left[name], value) for name, value in expected.items())


def test_the_weights_decide_by_their_magnitude_alone() -> None:
    setting = family("Plain", Budget(params=0.5))
    before = synflow(setting)
    with torch.no_grad():
        for parameter in setting.gm.parameters():
            parameter.mul_(torch.sign(torch.randn_like(parameter)))
    assert synflow(setting) == before


@pytest.mark.parametrize("wrong", [0.0, float("nan")])
def test_a_network_through_which_nothing_flows_is_refused(wrong: float) -> None:
    weights = [torch.ones(b, a) for a, b in pairwise((3, 4, 2))]
    weights[1][:] = wrong
    setting = setting_of(chain(*weights), torch.randn(2, 3), Budget(params=0.5))
    with pytest.raises(
        PlanError, match="method='synflow': nothing flows through this network: a layer holds only zeros"
    ):
        synflow(setting)
