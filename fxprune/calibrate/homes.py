"""Where a constant that is added to a contraction's output can live without a new parameter."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, fx

from fxprune.calls import bound_arguments

Home = Literal["bias", "batch_norm"]
BATCH_NORM = torch.ops.aten.batch_norm.default


def bias_home(node: fx.Node) -> Home | None:
    """The home of a constant after the contraction `node`: its own bias, the running mean of the BatchNorm that alone
    reads it, or none. A tensor that other nodes read too is no home."""
    bias = bound_arguments(node).get("bias")
    if isinstance(bias, fx.Node):
        return "bias" if _used_once(bias) else None
    norm = batch_norm_after(node)
    return "batch_norm" if norm is not None and _used_once(norm.args[3]) else None


def batch_norm_after(node: fx.Node) -> fx.Node | None:
    """The BatchNorm in evaluation that alone reads `node`, if there is one."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    evaluates = user.target is BATCH_NORM and user.args[0] is node and user.args[5] is False
    return user if evaluates and isinstance(user.args[3], fx.Node) else None


def gain(weight: Tensor | None, variance: Tensor, eps: float) -> Tensor:
    """What a BatchNorm in evaluation multiplies each channel by."""
    scale = (variance + eps).rsqrt()
    return scale if weight is None else scale * weight


def _used_once(value: object) -> bool:
    if not isinstance(value, fx.Node) or value.op != "get_attr" or len(value.users) != 1:
        return False
    same = [node for node in value.graph.nodes if node.op == "get_attr" and node.target == value.target]
    return len(same) == 1
