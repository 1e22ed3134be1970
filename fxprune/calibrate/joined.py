"""BatchNorm as part of the convolution before it: a graph for training that reads and writes fewer activations."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from fxprune.calibrate.homes import batch_norm_after, gain
from fxprune.calls import bound_arguments

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d)
PRECISE = (torch.float32, torch.float64)  # in others the product of kernel and scale would be rounded


def joined(gm: fx.GraphModule) -> fx.GraphModule:
    """The same function of the same tensors, shared with `gm`, in which `batch_norm(conv(x, W, b))` in evaluation is
    `conv(x, s W, s (b - mean) + beta)` with `s = gamma / sqrt(variance + eps)`.

    Values keep their names, but for those of such convolutions, which are gone. Gradients reach W, b, gamma and beta.
    For evaluation only: metadata are those of `gm`, and the new calls have no source code.
    """
    twin = fx.GraphModule(gm, copy.deepcopy(gm.graph))
    for node in list(twin.graph.nodes):
        norm = batch_norm_after(node) if _is_convolution(node) else None
        if norm is not None:
            bound = bound_arguments(norm)
            statistics = (bound[name] for name in ("weight", "bias", "running_mean", "running_var", "eps"))
            source, weight, bias, *rest = bound_arguments(node).values()
            norm.target, norm.kwargs = convolved, {}
            norm.args = (node.target, source, weight, bias, tuple(rest), *statistics)
            twin.graph.erase_node(node)
    return twin


def _is_convolution(node: fx.Node) -> bool:
    value = node.meta.get("val")
    known = isinstance(node.target, OpOverload) and node.target.overloadpacket in CONVOLUTIONS
    return known and isinstance(value, Tensor) and value.dtype in PRECISE


def convolved(
    convolution: OpOverload,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rest: tuple[Any, ...],
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> Tensor:
    """What BatchNorm in evaluation makes of a convolution's output."""
    scale = gain(gamma, variance, eps)
    shift = -mean if bias is None else bias - mean
    shift = shift * scale if beta is None else torch.addcmul(beta, shift, scale)
    result: Tensor = convolution(source, weight * scale.view(-1, *(1,) * (weight.ndim - 1)), shift, *rest)
    return result
