"""prune from end to end on attention, recurrent networks and a UNet, by every recipe and with whole heads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune as fp


class Vision(nn.Module):
    """Patches, a position for each, one block of a transformer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.positions = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 4, 16) * 0.1)
        self.block = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.block(x).mean(1))


class Language(nn.Module):
    """An embedding, two LSTM layers and a number for each sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(30, 12), nn.LSTM(12, 16, 2, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0].mean(1)).squeeze(-1)


class Diffusion(nn.Module):
    """Down, attention over pixels, up by a transposed convolution, and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.norm, self.qkv, self.out = nn.GroupNorm(4, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.silu(self.down1(x))
        y = F.silu(self.norm(self.down2(skip)))
        q, k, v = self.qkv(y.flatten(2).transpose(1, 2)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = y + self.out(z).transpose(1, 2).unflatten(2, y.shape[2:])
        return self.last(torch.cat([self.up(y), skip], 1))


@pytest.mark.parametrize(
    ("heads", "recipe"),
    [(False, "psp"), (True, "fast"), (False, "magnitude"), (True, "magnitude")],
    ids=["dimensions-psp", "heads-fast", "dimensions-magnitude", "heads-magnitude"],
)
@pytest.mark.parametrize("kind", [Vision, Language, Diffusion])
def test_other_networks_than_convolutional_classifiers(kind: type[nn.Module], heads: bool, recipe: str) -> None:
    model = kind().eval()
    data = torch.randint(0, 30, (48, 7)) if kind is Language else torch.randn(48, 3, 8, 8)
    budget = fp.Budget(flops=0.7)
    result = fp.prune(model, data[:2], budget=budget, calibration=data, recipe=recipe, heads=heads)
    before, after = result.report.before["flops"], result.report.after["flops"]
    assert 0.6 * before < after <= 0.7 * before
    assert result.report.verification is not None and result.report.verification.ok
    assert result.plan.heads is heads and fp.Plan.from_json(result.plan.to_json()).heads is heads
    assert "torch.ops" not in result.model.code
    assert list(result.model.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(result.program().module()(data[:5]), result.model(data[:5]))
    if recipe != "magnitude":  # what corrections leave is better than what the weights alone say
        plain = fp.prune(model, data[:2], budget=budget, calibration=data, recipe="magnitude", heads=heads)
        errors = [(item.model(data) - model(data)).square().mean() for item in (result, plain)]
        assert errors[0] < errors[1]
