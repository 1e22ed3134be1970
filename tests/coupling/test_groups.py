"""Groups, names, roles, slices and held axes."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune as fp
from fxprune.errors import CaptureError
from fxprune.passes.base import clone
from tests.networks import build, images

GOLDEN = {
    "Plain": "conv1.weight 6, conv2.weight 4, fc1.weight 5",
    "Residual": "stem.0.weight 4, conv1.0.weight 6",
    "Padded": "stem.0.weight 4, down.weight 8, conv.0.weight 4",
    "Dense": "stem.weight 4, grow1.weight 3, grow2.weight 3",
    "Depthwise": "stem.0.weight 4, expand.0.weight 8, squeeze.weight 2",
    "Grouped": "conv1.0.weight 8/2, conv2.0.weight 8/2, conv3.0.weight 4",
    "Shuffle": "left.0.weight#1 2, left.0.weight#2 2",
    "LayerScaled": "scale 4, up.weight 6",
    "Tied": "stem.0.weight 4",
}


def summary(coupling: fp.Coupling) -> str:
    blocks = {group.name: f"/{len(group.blocks)}" if group.blocks else "" for group in coupling.groups}
    return ", ".join(f"{group.name} {group.width}{blocks[group.name]}" for group in coupling.groups)


@pytest.mark.parametrize("name", GOLDEN)
def test_groups_of_each_mechanism(name: str) -> None:
    assert summary(fp.analyze(fp.capture(build(name), images()))) == GOLDEN[name]


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet50", 37), ("densenet121", 120), ("convnext_tiny", 22), ("resnet18", 12), ("mobilenet_v2", 25)],
)
def test_group_counts_of_torchvision(name: str, count: int) -> None:
    # resnet50: two inside each of 16 blocks, one a stage, the stem. densenet121: two for each of 58 layers, three
    # transitions, the stem. convnext_tiny: the hidden width of 18 blocks, one a stage.
    model = torchvision.models.get_model(name, weights=None)
    assert len(fp.analyze(fp.capture(model, torch.randn(1, 3, 64, 64))).groups) == count


def test_trunk_of_shufflenet_can_shrink() -> None:
    model = torchvision.models.shufflenet_v2_x1_0(weights=None)
    groups = fp.analyze(fp.capture(model, torch.randn(1, 3, 64, 64))).groups
    assert len(groups) >= 21
    trunk = [group for group in groups if group.name.startswith("stage2.0.branch1.2.weight")]
    assert sum(group.width for group in trunk) == 58  # every pair of shuffled channels is a unit


def test_text_is_stable() -> None:
    coupling = fp.analyze(fp.capture(build("Residual"), images()))
    text = "\n".join(line for line in str(coupling).splitlines() if not line.startswith("held"))
    assert text == (
        "2 groups, 9 held axes\n"
        "stem.0.weight: 4 units\n"
        "    produces stem.0.weight[0]\n"
        "    produces stem.1.weight[0]\n"
        "    produces stem.1.bias[0]\n"
        "    consumes conv1.0.weight[1]\n"
        "    produces conv2.0.weight[0]\n"
        "    produces conv2.1.weight[0]\n"
        "    produces conv2.1.bias[0]\n"
        "    consumes head.weight[1]\n"
        "conv1.0.weight: 6 units\n"
        "    produces conv1.0.weight[0]\n"
        "    produces conv1.1.weight[0]\n"
        "    produces conv1.1.bias[0]\n"
        "    consumes conv2.0.weight[1]"
    )


def test_held_axes_name_node_op_and_line() -> None:
    held = fp.analyze(fp.capture(build("Plain"), images())).held
    assert held[fp.Axis("fc2.weight", 0)] == "an output of the network"
    reason = held[fp.Axis("conv1.weight", 1)]
    assert "`conv2d` (aten.conv2d.default)" in reason
    assert "classifiers.py" in reason
    assert "self.conv1(x)" in reason
    assert "kernel" in held[fp.Axis("conv1.weight", 2)]


def test_slices_of_a_plain_unit() -> None:
    group = fp.analyze(fp.capture(build("Residual"), images())).by_name["conv1.0.weight"]
    assert group.slices(2) == (
        fp.Slice("conv1.0.weight", ((2,), None, None, None), "produces"),
        fp.Slice("conv1.1.weight", ((2,),), "produces"),
        fp.Slice("conv1.1.bias", ((2,),), "produces"),
        fp.Slice("conv2.0.weight", (None, (2,), None, None), "consumes"),
        fp.Slice("conv1.1.running_mean", ((2,),), "produces"),
        fp.Slice("conv1.1.running_var", ((2,),), "produces"),
    )


def test_slices_of_a_flattened_unit_cover_its_pixels() -> None:
    group = fp.analyze(fp.capture(build("Plain"), images())).by_name["conv2.weight"]
    assert fp.Slice("fc1.weight", (None, (4, 5, 6, 7)), "consumes") in group.slices(1)


def test_slices_of_a_grouped_input_are_rectangles() -> None:
    group = fp.analyze(fp.capture(build("Grouped"), images())).by_name["conv1.0.weight"]
    assert group.blocks == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert fp.Slice("conv2.0.weight", ((4, 5, 6, 7), (1,), None, None), "consumes") in group.slices(5)


def test_tied_weights_shrink_on_both_sides() -> None:
    (group,) = fp.analyze(fp.capture(build("Tied"), images())).groups
    assert fp.Slice("first.weight", ((1,), None, None, None), "produces") in group.slices(1)
    assert fp.Slice("first.weight", (None, (1,), None, None), "consumes") in group.slices(1)


class Mixing(nn.Module):
    """An op that is not understood, shares of channels, and a largest channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 4, 1) for _ in range(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        sorted_channels = torch.sort(self.a(x), dim=1).values.mean((1, 2, 3))
        shares = (self.b(x).softmax(1) ** 2).mean((1, 2, 3))
        largest = self.c(x)[:, ::2].amax((1, 2, 3))
        return self.head(torch.stack([sorted_channels, shares, largest], 1))


def test_what_is_not_understood_is_held_with_the_reason() -> None:
    coupling = fp.analyze(fp.capture(Mixing(), images()))
    assert coupling.groups == ()
    assert "op not understood: `sort`" in coupling.held[fp.Axis("a.weight", 0)]
    assert "its width changes the result of `softmax" in coupling.held[fp.Axis("b.weight", 0)]
    assert "its width changes the result of `amax" in coupling.held[fp.Axis("c.weight", 0)]


class Halves(nn.Module):
    """A gate between two halves of one convolution, and two halves that nothing joins."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.conv, self.left, self.right, self.gated = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1), gated

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        return self.left(a * b) if self.gated else self.left(a) + self.right(b)


def test_halves_are_joined_only_where_an_op_joins_them() -> None:
    assert summary(fp.analyze(fp.capture(Halves(True), images()))) == "conv.weight 4"
    assert summary(fp.analyze(fp.capture(Halves(False), images()))) == "conv.weight#1 4, conv.weight#2 4"


def test_residual_with_the_input_is_held() -> None:
    class FromInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(x + self.conv(x)).mean((2, 3)))

    coupling = fp.analyze(fp.capture(FromInput(), images()))
    assert "combined with an axis that cannot shrink in `add`" in coupling.held[fp.Axis("conv.weight", 0)]


def test_a_call_without_metadata_is_named() -> None:
    gm = clone(fp.capture(build("Residual"), images()))
    node = next(node for node in gm.graph.nodes if node.op == "call_function" and "relu" in node.name)
    del node.meta["val"]
    with pytest.raises(CaptureError, match=r"`relu` .*has no meta\['val'\], which a pass that adds a call must set"):
        fp.analyze(gm)
