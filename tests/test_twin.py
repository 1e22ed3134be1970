"""Plan.apply: the user's own class, shrunk, alive in training, and refused where it cannot follow."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.capture import capture
from fxprune.coupling import analyze
from fxprune.errors import PlanError
from fxprune.passes.lift import Lift
from fxprune.passes.shrink import shrink
from fxprune.types import Plan
from tests.networks import build, images, random_plan


def plan_for(model: nn.Module, *inputs: Tensor, seed: int = 0) -> Plan:
    return random_plan(analyze(capture(model, inputs)), seed)


@pytest.mark.parametrize(
    "name", ["Plain", "Residual", "Dense", "Depthwise", "Grouped", "Shuffle", "LayerScaled", "Tied"]
)
@pytest.mark.parametrize("balanced", [False, True], ids=["any", "half"])
def test_the_twin_computes_what_the_graph_does(name: str, balanced: bool) -> None:
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    gm = capture(model, images())
    plan = random_plan(analyze(gm), seed=1, balanced=balanced or name == "Shuffle")  # chunk makes equal parts
    twin, small = plan.apply(model), shrink(gm, plan)
    assert type(twin) is type(model)
    torch.testing.assert_close(twin(images()), small(images()))
    assert {key: item.shape for key, item in twin.state_dict().items()} == {
        key: item.shape for key, item in small.state_dict().items()
    }
    for module in twin.modules():
        rebuilt = _from_its_attributes(module)
        if rebuilt is not None:
            assert {key: item.shape for key, item in rebuilt.state_dict().items()} == {
                key: item.shape for key, item in module.state_dict().items()
            }
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), "the twin shares no memory with the model"


def _from_its_attributes(module: Any) -> nn.Module | None:
    """A new module from the sizes that this one says it has."""
    if isinstance(module, nn.Conv2d):
        kernel: Any = module.kernel_size
        return nn.Conv2d(
            module.in_channels, module.out_channels, kernel, groups=module.groups, bias=module.bias is not None
        )
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, module.out_features)
    if isinstance(module, nn.BatchNorm2d):
        return nn.BatchNorm2d(module.num_features)
    return nn.LayerNorm(module.normalized_shape) if isinstance(module, nn.LayerNorm) else None


class Regularised(nn.Module):
    """A forward that does more in training than in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(F.dropout(x.mean((2, 3)), 0.5, self.training))


def test_training_behaviour_flags_and_ties_are_kept() -> None:
    model = Regularised().train()
    model.norm.eval()
    model.conv.requires_grad_(False)
    twin = plan_for(model, images()).apply(model)
    assert [module.training for module in twin.modules()] == [module.training for module in model.modules()]
    assert [item.requires_grad for item in twin.parameters()] == [item.requires_grad for item in model.parameters()]
    assert not torch.equal(twin(images()), twin(images())), "dropout is alive"
    tied = build("Tied")
    twin = plan_for(tied, images()).apply(tied)
    assert twin.get_submodule("first") is twin.get_submodule("second")


class Sized(nn.Module):
    """A forward with a size written in: of a view, or of a slice."""

    def __init__(self, sliced: bool) -> None:
        super().__init__()
        self.conv, self.head, self.sliced = nn.Conv2d(3, 6, 3), nn.Linear(6, 3), sliced

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        if self.sliced:
            return self.head(torch.cat([x[:, 3:], x[:, :3]], 1))  # the place
        return self.head(x.view(-1, 6))  # the place


@pytest.mark.parametrize("sliced", [False, True], ids=["fails", "computes something else"])
def test_a_size_written_into_the_forward_is_refused_with_its_line(sliced: bool) -> None:
    model = Sized(sliced).eval()
    (group,) = analyze(capture(model, images())).groups
    with pytest.raises(PlanError, match=r"Sized cannot follow the plan.*test_twin\.py:\d+: .*# the place"):
        Plan({group.name: (0, 1, 3, 5) if sliced else (0, 3, 4)}).apply(model)


def test_a_plan_goes_with_its_inputs_or_asks_for_an_example() -> None:
    plan = plan_for(build("Residual"), images())
    fresh = build("Residual", seed=1)
    with pytest.raises(PlanError, match=r"plan\.apply\(model, example_inputs\)"):
        plan.apply(fresh)
    given = plan.apply(fresh, images())
    told = Plan(plan.kept, [((2, 3, 8, 8), "float32")]).apply(build("Residual", seed=1))
    torch.testing.assert_close(given(images()), told(images()))


def test_weights_that_changed_after_the_capture_are_taken() -> None:
    model = build("Plain")
    plan = plan_for(model, images())
    model.get_submodule("fc2").weight = nn.Parameter(torch.ones(3, 5))
    twin = plan.apply(model)
    assert torch.equal(twin.get_parameter("fc2.weight"), torch.ones_like(twin.get_parameter("fc2.weight")))


def test_a_capture_that_was_lifted_in_place_is_traced_anew() -> None:
    model = build("Plain")
    plan = plan_for(model, images())
    Lift()(capture(model, images()))
    assert plan.apply(model)(images()).shape == (2, 3)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn, self.head = nn.Linear(4, 6), nn.LSTM(6, 8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.first(x))[0])


def test_a_recurrent_module_knows_its_new_sizes() -> None:
    model, x = Recurrent(), torch.randn(2, 5, 4)
    gm = capture(model, x)
    plan = random_plan(analyze(gm), seed=3, balanced=True)
    twin = plan.apply(model)
    assert repr(twin.get_submodule("rnn")) == "LSTM(3, 4, num_layers=2, batch_first=True)"
    torch.testing.assert_close(twin.eval()(x), shrink(gm, plan)(x))
    twin.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(4, 8), nn.MultiheadAttention(8, 4, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


def test_attention_follows_where_its_widths_agree_and_is_refused_with_the_line_where_not() -> None:
    model, x = Attending(), torch.randn(2, 5, 4)
    groups = analyze(capture(model, x), heads=True).groups
    assert [group.width for group in groups] == [8, 4]
    names = [group.name for group in groups]
    twin = Plan({names[0]: range(4), names[1]: [1, 3]}, heads=True).apply(model)
    attention = twin.get_submodule("attention")
    assert isinstance(attention, nn.MultiheadAttention)
    assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (4, 2, 2)
    with pytest.raises(PlanError, match=r"Attending cannot follow the plan: a size .* at .*test_twin.py:\d+: return"):
        Plan({names[1]: [1, 3]}, heads=True).apply(model)


class Unregistered(nn.Module):
    """Scales by a tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.scale = nn.Linear(4, 6), nn.Linear(6, 3), torch.rand(6) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x) * self.scale)


def test_a_tensor_that_is_registered_as_nothing_shrinks_too() -> None:
    model, x = Unregistered(), torch.randn(2, 4)
    gm = capture(model, x)
    plan = Plan({"first.weight": [0, 2, 5]})
    twin = plan.apply(model)
    assert isinstance(twin, Unregistered) and twin.scale.shape == (3,) and model.scale.shape == (6,)
    torch.testing.assert_close(twin(x), shrink(gm, plan)(x))


class InItsOwnType(nn.Module):
    """Names a type in its forward, so that it does not run in another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x)).to(torch.float32))


def test_a_forward_that_names_its_type_is_compared_in_it() -> None:
    model, x = InItsOwnType(), torch.randn(2, 4)
    gm = capture(model, x)
    plan = Plan({"first.weight": [0, 2, 5]})
    torch.testing.assert_close(plan.apply(model)(x), shrink(gm, plan)(x))
