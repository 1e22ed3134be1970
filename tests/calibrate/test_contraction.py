"""Contractions as matrices: rows times matrix is what the op computes, whatever its stride, groups and padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.calibrate.contraction import Contraction, contractions
from fxprune.calibrate.evaluate import Evaluator, attribute
from fxprune.capture import capture
from tests.networks import build, images

CASES: dict[str, tuple[nn.Module, Tensor]] = {
    "plain": (nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 7, 8)),
    "strided": (nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(0, 2)), torch.randn(2, 4, 9, 8)),
    "dilated": (nn.Conv2d(4, 6, (3, 2), dilation=2), torch.randn(2, 4, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), torch.randn(2, 4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), torch.randn(2, 4, 7, 7)),
    "same": (nn.Conv2d(4, 6, (5, 3), dilation=(1, 2), padding="same"), torch.randn(2, 4, 7, 7)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), torch.randn(2, 4, 7, 7)),
    "one axis": (nn.Conv1d(4, 6, 5, stride=2, padding=2), torch.randn(2, 4, 11)),
    "three axes": (nn.Conv3d(2, 4, 2, padding=1), torch.randn(2, 2, 3, 4, 3)),
    "linear": (nn.Linear(5, 3), torch.randn(2, 5)),
    "linear on tokens": (nn.Linear(5, 3, bias=False), torch.randn(2, 4, 5)),
}


def alone(case: str) -> tuple[fx.GraphModule, Contraction, Tensor, Tensor]:
    """A network of one contraction, that contraction, its input and its output."""
    model, x = CASES[case]
    gm = capture(nn.Sequential(model), (x,))
    (item,) = contractions(gm).values()
    y = Evaluator(gm)([item.name], {item.source: x})[item.name]
    return gm, item, x, y


@pytest.mark.parametrize("case", CASES)
def test_rows_times_matrix_is_the_output(case: str) -> None:
    gm, item, x, y = alone(case)
    index = torch.randperm(item.positions(y))[:20]
    weight = attribute(gm, item.weight)
    bias = 0 if item.bias is None else Evaluator(gm)([item.bias], {})[item.bias].view(item.systems, 1, -1)
    matrix = item.matrix(weight)
    torch.testing.assert_close(item.rows(x, y, index) @ matrix + bias, item.targets(y, index), rtol=1e-4, atol=1e-5)
    assert torch.equal(item.tensor(matrix, weight), weight)
    offset = item.along_channels(torch.arange(weight.shape[0]), y.ndim)
    axis = item.output_axis % y.ndim
    assert torch.equal(offset.expand(y.shape).movedim(axis, -1)[(0,) * (y.ndim - 1)], torch.arange(weight.shape[0]))


def test_a_weight_that_is_used_twice_or_computed_is_left_alone() -> None:
    tied = capture(build("Tied"), (images(),))
    weights = [item.weight for item in contractions(tied).values()]
    assert len(weights) == len(set(weights))
    calls = [node for node in tied.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    used = [node.args[1].target for node in calls]
    assert {name for name in used if used.count(name) > 1}.isdisjoint(weights)

    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight - self.weight.mean(1, keepdim=True))

    assert contractions(capture(Standardised(), (torch.randn(2, 3),))) == {}


@pytest.mark.parametrize("case", CASES)
def test_without_an_index_all_rows_are_given(case: str) -> None:
    _, item, _, y = alone(case)
    assert torch.equal(item.targets(y), item.targets(y, torch.arange(item.positions(y))))
