"""What cannot be done is refused with a typed error that names the group or the node, and what would be valid."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune as fp
from fxprune.errors import CaptureError
from tests.networks import build, captured, images, inputs
from tests.networks.oracles import exact


class Base(nn.Module):
    """A convolution and a head, with something in between."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 3)
        self.register_buffer("seen", torch.randn(6))

    def rest(self, x: Tensor) -> Tensor:
        return self.head(F.relu(x).mean((2, 3)))


class Branch(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x * 2
        return self.rest(self.conv(x))


class Loop(Base):
    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x / 2
        return self.rest(self.conv(x))


class Masked(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        total = x[x > 0].sum()
        return self.rest(x) + total


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Branch, r"test_bad_input.py:\d+: if x.sum\(\) > 0.*\n.*use torch.where"),
        (Loop, r"test_bad_input.py:\d+: while x.abs\(\).max\(\) > 1.*\n.*use torch.where"),
        (
            Masked,
            r"`index` \(aten.index.Tensor\).*total = x\[x > 0\].sum\(\) depends on the values.*a mask of fixed size",
        ),
    ],
)
def test_control_flow_and_sizes_that_depend_on_values(network: type[Base], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        fp.analyze(fp.capture(network(), images()))


class Noise(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x + torch.randn_like(x)
        return self.rest(x)


class Read(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        scale = x.amax().item()
        return self.rest(x) * scale


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Noise, r"random numbers are drawn by `randn_like` .*x = x \+ torch.randn_like\(x\)"),
        (Read, r"its width changes the result of `amax` .*scale = x.amax\(\).item\(\)"),
    ],
)
def test_what_would_compute_something_else_is_held(network: type[Base], reason: str) -> None:
    coupling = fp.analyze(fp.capture(network(), images()))
    assert coupling.groups == ()
    assert re.search(reason, coupling.held[fp.Axis("conv.weight", 0)])


class Remembers(Base):
    """A moving average in a buffer: an op with a side effect."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.seen.mul_(0.9).add_(x.mean((0, 2, 3)))
        return self.rest(x - self.seen[:, None, None])


def test_a_buffer_that_the_forward_writes_shrinks_with_its_channels() -> None:
    gm = fp.capture(Remembers(), images())
    small = exact(gm, fp.Plan({"conv.weight": [0, 3, 5]}))
    assert small.get_buffer("seen").shape == (3,)
    before = small.get_buffer("seen").clone()
    small(images())
    assert not torch.equal(small.get_buffer("seen"), before)


class Nothing(nn.Module):
    """One layer from the input to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


def test_a_network_in_which_nothing_can_shrink() -> None:
    gm = fp.capture(Nothing(), images())
    coupling = fp.analyze(gm)
    assert coupling.groups == ()
    assert coupling.held[fp.Axis("head.weight", 0)] == "an output of the network"
    with pytest.raises(fp.PlanError, match="nothing in this network can shrink: an output of the network"):
        fp.prune(Nothing(), images(), budget=fp.Budget(params=0.5), calibration=images(8))
    with pytest.raises(fp.PlanError, match="names group 'head.weight', which this network does not have"):
        fp.shrink(gm, fp.Plan({"head.weight": [0]}))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"q.wieght": [0]}, r"names group 'q.wieght', which this network does not have: did you mean 'q.weight'"),
        ({"q.weight": []}, r"keeps nothing of group 'q.weight': keep at least 2 of 8"),
        ({"q.weight": [0, 0, 4, 5]}, r"keeps units \[0\] of group 'q.weight' more than once"),
        ({"q.weight": [0, 8]}, r"keeps units \[8\] of group 'q.weight', whose units are 0 to 7"),
        ({"v.weight": [0, 1, 4]}, r"keeps 1 to 2 units in the 2 blocks of group 'v.weight'.*in each of 0..3, 4..7"),
    ],
)
def test_plans_that_do_not_fit_attention(kept: dict[str, list[int]], message: str) -> None:
    gm = captured("Attention")
    with pytest.raises(fp.PlanError, match=message):
        fp.shrink(gm, fp.Plan(kept))


def test_a_plan_of_heads_is_none_of_dimensions() -> None:
    gm = captured("Attention")
    assert exact(gm, fp.Plan({"q.weight": [1]}, heads=True)).get_parameter("q.weight").shape == (4, 6)
    with pytest.raises(fp.PlanError, match="keeps 0 to 1 units in the 2 blocks of group 'q.weight'"):
        fp.shrink(gm, fp.Plan({"q.weight": [1]}))
    with pytest.raises(fp.PlanError, match="names group 'v.weight', which this network does not have"):
        fp.shrink(gm, fp.Plan({"v.weight": [0, 4]}, heads=True))
    assert fp.Plan.from_json(fp.Plan({"q.weight": [1]}, heads=True).to_json()).heads


def test_a_graph_that_was_not_captured() -> None:
    traced = torch.fx.symbolic_trace(build("Plain"))
    with pytest.raises(CaptureError, match="was not made by fxprune.capture"):
        fp.analyze(traced)


@pytest.mark.parametrize("name", ["Llama", "Bert", "UNet"])
def test_a_whole_layer_cannot_be_removed(name: str) -> None:
    gm = fp.capture(build(name), inputs(name))
    group = fp.analyze(gm).groups[-1]
    with pytest.raises(fp.PlanError, match=f"keeps nothing of group '{group.name}'"):
        fp.shrink(gm, fp.Plan({group.name: []}))


def test_inference_mode_is_refused_with_a_reason() -> None:
    message = r"tensors of torch.inference_mode\(\) cannot be traced or learned from"
    with torch.inference_mode(), pytest.raises(fp.FxpruneError, match=message):
        fp.capture(build("Plain"), images())
    with torch.inference_mode():
        made = images()
    with pytest.raises(fp.FxpruneError, match=message):
        fp.capture(build("Plain"), made)
    with torch.no_grad():
        fp.capture(build("Plain"), images())


class Wider(Base):
    """The same names, more channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 9, 3, padding=1), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.conv(x))


class Narrower(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.conv(x))


def test_a_plan_of_a_network_of_other_widths_is_refused() -> None:
    plan = fp.prune(Narrower(), images(), budget=fp.Budget(params=0.6), recipe="magnitude").plan
    assert plan.widths == {"conv.weight": 6}
    again = fp.Plan.from_json(plan.to_json())
    assert again.widths == plan.widths
    for refused in (plan, again):
        with pytest.raises(fp.PlanError, match=r"another model's: group 'conv.weight' had 6 units .*, and has 9 here"):
            fp.shrink(fp.capture(Wider(), images()), refused)


def test_torchscript_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        traced = torch.jit.trace(build("Plain").eval(), images())
    with pytest.raises(CaptureError, match="TorchScript is not captured: give the nn.Module that it was made from"):
        fp.capture(traced, images())
