"""Fuse: corrections move into the tensors that the layers already have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.calibrate.evaluate import attribute
from fxprune.calibrate.homes import bias_home
from fxprune.calls import bound_arguments
from fxprune.errors import RewriteError, describe
from fxprune.passes.base import CORRECTION, replace_tensor, require_operators


@dataclass(frozen=True, eq=False)
class Fuse(PassBase):
    """Replaces `conv(x, W, b) + c` by `conv(x, W, b + c)`, and `batch_norm(conv(x, W) + c, mean)` by
    `batch_norm(conv(x, W), mean - c)`, for the constants c that Reconstruct added. No addition of its is left.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Fold every correction; without any, nothing changes."""
        corrections = [node for node in graph_module.graph.nodes if node.meta.get(CORRECTION)]
        if corrections:
            require_operators(graph_module, "Fuse")
        for node in corrections:
            _fold(graph_module, node)
        if corrections:
            graph_module.graph.eliminate_dead_code()
            graph_module.recompile()
        return PassResult(graph_module, bool(corrections))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """No correction is left."""
        for node in graph_module.graph.nodes:
            if node.meta.get(CORRECTION):
                raise RewriteError(f"a correction was not fused: {describe(node)}")


def _fold(gm: fx.GraphModule, total: fx.Node) -> None:
    source, constant = total.args
    assert isinstance(source, fx.Node) and isinstance(constant, fx.Node)
    offset = attribute(gm, str(constant.target)).flatten()
    total.replace_all_uses_with(source)
    gm.graph.erase_node(total)
    gm.graph.erase_node(constant)
    delattr(gm, str(constant.target))
    name, sign = _home_tensor(source)
    with torch.no_grad():
        replace_tensor(gm, name, _sum(attribute(gm, name), sign * offset))


def _home_tensor(node: fx.Node) -> tuple[str, int]:
    """The tensor that takes the constant up, and the sign with which it enters."""
    home = bias_home(node)
    if home == "bias":
        return str(bound_arguments(node)["bias"].target), 1
    if home == "batch_norm":
        norm = next(iter(node.users))
        mean = norm.args[3]
        assert isinstance(mean, fx.Node)
        return str(mean.target), -1
    raise RewriteError(f"no bias or BatchNorm takes up the correction of {describe(node)}")


def _sum(tensor: Tensor, offset: Tensor) -> Tensor:
    return (tensor.double() + offset.double()).to(tensor.dtype)
