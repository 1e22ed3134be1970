"""Lift builds every module of torch.nn from its call alone: same text, outputs and training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.capture import capture
from fxprune.passes.lift import Lift


def lifted(model: nn.Module, x: Tensor) -> fx.GraphModule:
    gm = copy.deepcopy(capture(model, (x,)))
    Lift()(gm)
    return gm


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.attention(x, x, x, need_weights=False)[0]


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, padding="valid", dilation=2, groups=2), (2, 4, 12)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), (1, 2, 1), padding=(0, 1, 0)), (2, 2, 4, 4, 4)),
    "conv_same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 2, 6, 6)),
    "conv_reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 6, 6)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), (2, 4, 8)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, bias=False), (2, 4, 8, 8)),
    "batch_norm1d": (lambda: nn.BatchNorm1d(4, eps=1e-3, momentum=None), (5, 4)),
    "batch_norm3d": (lambda: nn.BatchNorm3d(2, affine=False), (2, 2, 3, 3, 3)),
    "layer_norm": (lambda: nn.LayerNorm((3, 4), eps=1e-3), (2, 3, 4)),
    "layer_norm_plain": (lambda: nn.LayerNorm(4, elementwise_affine=False), (2, 3, 4)),
    "group_norm": (lambda: nn.GroupNorm(2, 4, eps=1e-3), (2, 4, 3, 3)),
    "instance_norm": (lambda: nn.InstanceNorm2d(4, affine=True), (2, 4, 3, 3)),
    "prelu": (lambda: nn.PReLU(3), (2, 3, 4)),
    "attention": (Attention, (2, 5, 8)),
    "hardtanh": (lambda: nn.Hardtanh(-2, 2), (2, 3)),
    "relu6": (nn.ReLU6, (2, 3)),
    "leaky": (lambda: nn.LeakyReLU(0.2), (2, 3)),
    "elu": (lambda: nn.ELU(0.5), (2, 3)),
    "gelu": (lambda: nn.GELU("tanh"), (2, 3)),
    "softplus": (lambda: nn.Softplus(2.0), (2, 3)),
    "softmax": (lambda: nn.Softmax(-1), (2, 3)),
    "max_pool": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 2, 8, 8)),
    "avg_pool": (lambda: nn.AvgPool2d((2, 3), count_include_pad=False), (2, 2, 8, 9)),
    "avg_pool_divisor": (lambda: nn.AvgPool2d(2, padding=1, divisor_override=3), (2, 2, 8, 8)),
    "adaptive": (lambda: nn.AdaptiveAvgPool2d((2, 1)), (2, 2, 8, 8)),
    "adaptive_max": (lambda: nn.AdaptiveMaxPool2d(2), (2, 2, 8, 8)),
    "flatten": (lambda: nn.Flatten(0, 1), (2, 3, 4)),
    "zero_pad": (lambda: nn.ZeroPad2d((0, 1, 0, 1)), (2, 2, 3, 3)),
    "constant_pad": (lambda: nn.ConstantPad2d(1, 0.5), (2, 2, 3, 3)),
    "replicate": (lambda: nn.ReplicationPad2d(1), (2, 2, 3, 3)),
    "pixel_shuffle": (lambda: nn.PixelShuffle(2), (2, 8, 3, 3)),
    "pixel_unshuffle": (lambda: nn.PixelUnshuffle(2), (2, 2, 4, 4)),
    "upsample": (lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (2, 2, 3, 3)),
    "nearest": (lambda: nn.Upsample(size=(7, 5)), (2, 2, 3, 3)),
}


class Held(nn.Module):
    """One module under a name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 1.5


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_built_from_its_call(name: str) -> None:
    make, shape = MODULES[name]
    model, x = randomized_all(Held(make())).double().eval(), torch.randn(shape, dtype=torch.float64)
    gm = lifted(model, x)
    assert "torch.ops" not in gm.code
    torch.testing.assert_close(gm(x), model(x), rtol=1e-12, atol=1e-12)
    assert list(gm.state_dict()) == list(model.state_dict())
    if name not in {"attention", "instance_norm", "conv_reflect", "upsample", "nearest", "adaptive_max"}:
        assert repr(gm.get_submodule("inner")) == repr(model.inner)
    torch.testing.assert_close(gm.train()(x), model.train()(x), rtol=1e-12, atol=1e-12)


def randomized_all(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model


def test_embedding() -> None:
    model = Held(nn.Embedding(7, 3, padding_idx=2))
    x = torch.tensor([[1, 2], [3, 4], [0, 6]])
    gm = lifted(model, x)
    assert repr(gm.get_submodule("inner")) == repr(model.inner)
    torch.testing.assert_close(gm(x), model(x))


def test_a_module_that_reads_a_buffer() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)
            self.register_buffer("table", torch.rand(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.inner(self.get_buffer("table")).mT

    model, x = Table(), torch.randn(5, 2)
    gm = lifted(model, x)
    assert "self.inner(self.table)" in gm.code
    torch.testing.assert_close(gm(x), model(x))
