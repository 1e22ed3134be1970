"""BatchNorm within the convolution before it: the same function, with the same gradients, of the same tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.calibrate.joined import convolved, joined
from tests.networks import NETWORKS, build, images


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_outputs_and_gradients_are_the_same(name: str) -> None:
    gm = fp.capture(build(name).double(), images().double())
    code, x = gm.code, images(5).double()
    twin = joined(gm)
    twin.recompile()
    wanted, found = gm(x), twin(x)
    torch.testing.assert_close(found, wanted)
    theirs, ours = (torch.autograd.grad(output.square().sum(), list(gm.parameters())) for output in (wanted, found))
    torch.testing.assert_close(ours, theirs)
    assert gm.code == code


class Several(nn.Module):
    """A norm of a convolution that another reads too, one without an affine, one of three dimensions, one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.bare = nn.Conv2d(8, 8, 3, bias=False, groups=2), nn.BatchNorm2d(8, affine=False)
        self.third, self.deep = nn.Conv3d(1, 4, (3, 1, 1), padding=(1, 0, 0)), nn.BatchNorm3d(4)
        self.alone = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.alone(x))
        y = torch.relu(self.norm(y) + y)
        y = torch.relu(self.bare(self.second(y)))
        return self.deep(self.third(y[:, None]))


def test_only_a_norm_that_alone_reads_a_convolution_is_joined() -> None:
    model = Several().train()
    for _ in range(3):
        model(images(16))
    gm = fp.capture(model.eval().double(), images().double())
    twin = joined(gm)
    twin.recompile()
    assert [node.name for node in twin.graph.nodes if node.target is convolved] == ["batch_norm_2", "batch_norm_3"]
    torch.testing.assert_close(twin(images(5).double()), gm(images(5).double()))


def test_half_precision_stays_as_it_is() -> None:
    gm = fp.capture(build("Residual").bfloat16(), images().bfloat16())
    assert not any(node.target is convolved for node in joined(gm).graph.nodes)
