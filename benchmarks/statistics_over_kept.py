"""Normalisations over channels with their statistics taken over the channels that stay: what a narrower one computes.

Written apart from fxprune, whose work it judges. Each function takes, first, which positions of the input stay: bool,
broadcastable to it; then what the operator takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def layer_norm(
    stays: Tensor,
    x: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Layer normalisation over the last dimensions."""
    dims = list(range(x.ndim - len(normalized_shape), x.ndim))
    normal = _standardized(x, stays, dims, eps)
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


def rms_norm(
    stays: Tensor, x: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Division by the root of the mean square over the last dimensions."""
    dims = list(range(x.ndim - len(normalized_shape), x.ndim))
    share = stays.expand(x.shape).to(x.dtype)
    square = (x.square() * share).sum(dims, keepdim=True) / share.sum(dims, keepdim=True)
    normal = x / (square + (torch.finfo(x.dtype).eps if eps is None else eps)).sqrt()
    return normal if weight is None else normal * weight


def group_norm(
    stays: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Normalisation of each sample over groups of channels."""
    split = (len(x), num_groups, -1, *x.shape[2:])
    inside = stays.expand(x.shape).reshape(split)
    normal = _standardized(x.reshape(split), inside, list(range(2, len(split))), eps).reshape(x.shape)
    along = (-1, *(1,) * (x.ndim - 2))
    normal = normal if weight is None else normal * weight.reshape(along)
    return normal if bias is None else normal + bias.reshape(along)


def _standardized(x: Tensor, stays: Tensor, dims: list[int], eps: float) -> Tensor:
    share = stays.expand(x.shape).to(x.dtype)
    count = share.sum(dims, keepdim=True)
    mean = (x * share).sum(dims, keepdim=True) / count
    variance = ((x - mean).square() * share).sum(dims, keepdim=True) / count
    return (x - mean) / (variance + eps).sqrt()


OVER_KEPT: dict[Any, Callable[..., Tensor]] = {
    aten.layer_norm.default: layer_norm,
    aten.rms_norm.default: rms_norm,
    aten.group_norm.default: group_norm,
}
