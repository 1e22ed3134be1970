"""What the oracle needs of a network: weights that hide no mistake, inputs, plans, and a graph as text."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassResult

from fxprune.capture import capture
from fxprune.types import Coupling, Plan
from tests.networks.classifiers import NETWORKS
from tests.networks.examples import EXAMPLES, images


class Calls(nn.Module):
    """A network of one function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def build(name: str, seed: int = 0) -> nn.Module:
    """The network in evaluation mode, with statistics, affines and tables that a mistake cannot hide behind."""
    torch.manual_seed(seed)
    if name in NETWORKS:
        return randomized(NETWORKS[name]()).eval()
    return scattered(randomized(EXAMPLES[name].build())).eval()


def inputs(name: str, batch: int = 2) -> tuple[Tensor, ...]:
    """What the network takes."""
    return (images(batch),) if name in NETWORKS else EXAMPLES[name].inputs(batch)


@lru_cache(maxsize=8)
def _graph(name: str) -> fx.GraphModule:
    return capture(build(name), inputs(name))


def captured(name: str, seed: int = 0) -> fx.GraphModule:
    """The captured network with the weights of a seed; the graph is captured once, and shared by tests that follow."""
    gm = _graph(name)
    gm.load_state_dict(build(name, seed).state_dict(), strict=False)  # constants of the graph are no weights
    return gm


def randomized(model: nn.Module) -> nn.Module:
    """Random statistics and affines in every BatchNorm, in place."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return model


def scattered(model: nn.Module) -> nn.Module:
    """Noise on every parameter that is one constant, as affines, biases and tables are at first, in place."""
    with torch.no_grad():
        for parameter in model.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def random_plan(coupling: Coupling, seed: int, balanced: bool = False, only: str | None = None, least: int = 1) -> Plan:
    """A possible plan: in each group random units, equally many in each block.

    balanced: half of each group is kept.
    only: the one group that loses units.
    least: how many each block keeps, where it has as many.
    """
    rng = random.Random(seed)
    kept = {}
    for group in coupling.groups:
        if only is None or group.name == only:
            blocks = group.blocks or (tuple(range(group.width)),)
            count = max(1, len(blocks[0]) // 2) if balanced else rng.randint(min(least, len(blocks[0])), len(blocks[0]))
            kept[group.name] = [unit for block in blocks for unit in rng.sample(block, count)]
    return Plan(kept)


def calls(gm: fx.GraphModule) -> str:
    """The calls of an ATen graph as golden text: name, shape, op, and arguments that are not tensors."""
    lines = []
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        shape = list(node.meta["val"].shape)[1:] if isinstance(node.meta.get("val"), Tensor) else ""
        target = str(node.target).removeprefix("aten.")
        sources = [source.name for source in node.all_input_nodes if source.op != "get_attr"]
        literals = [str(arg) for arg in node.args if isinstance(arg, (int, list)) and not _has_node(arg)]
        lines.append(f"{node.name}{shape} = {target}({', '.join(sources + literals)})")
    return "\n".join(lines)


def modified(result: PassResult | None) -> bool:
    """What a pass says of itself."""
    assert result is not None
    return result.modified


def _has_node(arg: object) -> bool:
    return isinstance(arg, list) and all(isinstance(item, fx.Node) for item in arg)
