"""Spellings: every operator that the rules name is written as code of torch, and computes the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.capture import capture
from fxprune.passes.base import clone
from fxprune.passes.lift import Lift
from fxprune.passes.tidy import Tidy
from tests.networks import Calls

X = (2, 6, 8, 8)


def heads(x: Tensor) -> Tensor:
    """[2, 4, 16, 6]: batch, heads, positions, dimensions."""
    return x.flatten(2).unflatten(2, (4, 16)).permute(0, 2, 3, 1)


SPELLINGS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "unfold": (lambda x: F.unfold(x, 3, padding=1), "F.unfold(x, 3, padding=1)"),
    "fold": (lambda x: F.fold(x.flatten(2)[:, :4], 9, 2), "F.fold("),
    "slice_scatter": (lambda x: torch.slice_scatter(x, x[:, :2] * 2, 1, 1, 3), "torch.slice_scatter(x, y, 1, 1, 3)"),
    "select_scatter": (lambda x: torch.select_scatter(x, x[:, 0] * 2, 1, 1), "torch.select_scatter(x, y, 1, 1)"),
    "index_copy": (lambda x: x.index_copy(1, torch.tensor([2, 0]), x[:, :2] * 2), "torch.index_copy("),
    "index_put": (lambda x: x.index_put((torch.tensor([1]), torch.tensor([2])), x[:1, 0]), ".index_put(("),
    "index": (lambda x: x[:, torch.tensor([0, 2, 1])], "x[:, self."),
    "indices": (lambda x: x[:, :, torch.tensor([0, 2]), torch.tensor([1, 1])], "x[:, :, self."),
    "gather": (lambda x: x.gather(1, torch.zeros(2, 1, 8, 8, dtype=torch.int64)), "torch.gather(x, 1"),
    "index_select": (lambda x: x.index_select(1, torch.tensor([3, 1])), "torch.index_select(x, 1"),
    "zero": (lambda x: x * torch.zeros_like(x), "torch.zeros_like(x)"),
    "roll": (lambda x: x.roll((1, -1), (2, 3)), "x.roll((1, -1), (2, 3))"),
    "flip": (lambda x: x.flip(1), "x.flip(1)"),
    "narrow": (lambda x: x.narrow(1, 2, 3), "torch.narrow(x, 1, 2, 3)"),
    "tile": (lambda x: torch.tile(x, (1, 2, 1, 1)), "torch.tile(x, (1, 2, 1, 1))"),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), "x.repeat(1, 2, 1, 1)"),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), "x.repeat_interleave(2, 1)"),
    "unbind": (lambda x: torch.stack(x.unbind(1)[:2], 1), "x.unbind(1)"),
    "glu": (lambda x: F.glu(x, 1), "F.glu(x, 1)"),
    "attention": (
        lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), is_causal=True, scale=0.3),
        "is_causal=True, scale=0.3)",
    ),
    "grouped_query": (
        lambda x: F.scaled_dot_product_attention(heads(x), heads(x)[:, :2], heads(x)[:, :2], enable_gqa=True),
        "enable_gqa=True)",
    ),
    "masked": (
        lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), attn_mask=heads(x)[:, :, :, :1] > 0),
        "F.scaled_dot_product_attention(query, key, value, x)",
    ),
    "einsum": (lambda x: torch.einsum("bchw,bdhw->bcd", x, x), 'torch.einsum("bchw,bdhw->bcd", [x, x])'),
    "bmm": (lambda x: torch.bmm(x.flatten(2), x.flatten(2).mT), "torch.bmm("),
    "baddbmm": (lambda x: torch.baddbmm(x[:, :, 0, :6], x.flatten(2), x.flatten(2).mT, beta=0.5), "torch.baddbmm("),
    "addmm": (lambda x: torch.addmm(x[0, 0], x[0, 1], x[0, 2], alpha=2), "torch.addmm("),
    "rms_norm": (lambda x: F.rms_norm(x, (8,)), "F.rms_norm(x, (8,))"),
    "layer_norm": (lambda x: F.layer_norm(x, (8, 8)), "F.layer_norm(x, (8, 8))"),
    "group_norm": (lambda x: F.group_norm(x, 3), "F.group_norm(x, 3)"),
    "instance_norm": (lambda x: F.instance_norm(x), "F.instance_norm(x)"),
    "norm": (lambda x: F.normalize(x, dim=1), "torch.linalg.vector_norm("),
    "complex": (
        lambda x: torch.view_as_real(
            torch.view_as_complex(x.unflatten(3, (4, 2))) * torch.polar(x[..., :4], x[..., :4])
        ),
        "torch.polar(",
    ),
    "maximum": (lambda x: x.max(1).values, "torch.max(x, 1)"),
    "topk": (lambda x: x.topk(3, 1).values, "torch.topk(x, 3, 1)"),
    "cumsum": (lambda x: x.cumsum(1), "torch.cumsum(x, 1)"),
    "where": (lambda x: torch.where(x > 0, x, 0.5), "torch.where("),
    "factories": (lambda x: x + x.new_zeros(8) + torch.full((8,), 2.0) + torch.arange(8), "torch.full((8,), 2.0"),
    "bicubic": (
        lambda x: F.interpolate(x, size=(5, 7), mode="bicubic", antialias=True),
        'mode="bicubic", antialias=True',
    ),
    "exact": (lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest-exact"), 'mode="nearest-exact")'),
    "grid": (
        lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), padding_mode="border", align_corners=False),
        'padding_mode="border", align_corners=False)',
    ),
    "dropout": (lambda x: F.dropout(x, 1.0, True), "F.dropout(x, 1.0)"),
    "batch": (lambda x: x.reshape(x.shape[0] * 6, 64), "x.reshape(x.size(0) * 6, 64)"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_it_is_written_as_people_do(name: str) -> None:
    function, text = SPELLINGS[name]
    model, x = Calls(function), torch.randn(X)
    gm = clone(capture(model, x))
    for step in (Tidy(), Lift()):
        step(gm)
    assert "torch.ops" not in gm.code
    assert text in gm.code
    torch.testing.assert_close(gm(x), model(x))
    if name != "gather":  # its index is a constant for two samples
        wide = torch.cat([x, x, x])
        torch.testing.assert_close(gm(wide), model(wide))
