"""A pass of your own between two of ours, in torch's PassManager."""

from typing import Any

import torch
import torchvision
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager

import fxprune as fp
from fxprune.passes.shrink import Shrink


class CountConvolutions(PassBase):
    """Changes nothing: prints how many convolutions the graph has, and how many channels they make."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Reads shapes off the metadata, which every pass of fxprune keeps true."""
        shapes = [node.meta["val"].shape for node in graph_module.graph.nodes if "conv2d" in node.name]
        print(len(shapes), "convolutions,", sum(shape[1] for shape in shapes), "channels")
        return PassResult(graph_module, False)


images = torch.randn(64, 3, 32, 32)
graph = fp.capture(torchvision.models.mobilenet_v2(width_mult=0.35), images[:2])
passes: list[Any] = list(fp.pipeline("fast", budget=fp.Budget(flops=0.5), calibration=images))
shrink = next(place for place, step in enumerate(passes) if isinstance(step, Shrink))
passes[shrink : shrink + 1] = [CountConvolutions(), passes[shrink], CountConvolutions()]

result = PassManager(passes)(graph)
print(result.graph_module.code)
