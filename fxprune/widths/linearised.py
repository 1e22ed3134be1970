"""The network made linear, with absolute values for its weights, run on numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxprune.calls import argument, attribute, tensor_arguments
from fxprune.capture import capture_info
from fxprune.widths.layers import WEIGHTED
from fxprune.widths.signals import Kind, Signals, packet_of, refused

aten = torch.ops.aten


def linearised(gm: fx.GraphModule, tensors: Mapping[str, Tensor], inputs: Any = None) -> Tensor:
    """The log of the sum of the outputs of the linearised network: a float64 scalar, differentiable in `tensors`.

    The sum itself leaves the range of float64 in deep networks. The gradient of its log, times a weight, is the SynFlow
    score of the weight divided by the sum: for all weights by the same number.

    tensors: by the names of `gm.named_parameters()`, at least 0; a parameter that is left out has its absolute value.
        Those that no contraction multiplies by count for nothing.
    inputs: at least 0, as the network takes them; None: ones, of one sample where the batch is dynamic.

    Activations, and normalisations with their affines, hand on what they get. What is added and is no signal is zero
    (biases, position embeddings). Means stand for maxima. Two signals multiply, but a gate is open whatever it reads: a
    sigmoid or softmax that does nothing but multiply other signals is 1, or an even share. Were gates linear,
    squeeze-and-excite would double the degree of the network with every block, and a dead squeeze would seem to cut it.

    Source: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow (2020),
    equation 2. Raises RewriteError naming the node for which nothing linear is known to stand.
    """
    run = _Linearised(gm, tensors)
    total: Tensor = run.run(*pytree.tree_leaves(ones(gm) if inputs is None else inputs), enable_io_processing=False)
    return total


def ones(gm: fx.GraphModule) -> list[Any]:
    """The example inputs, one sample of them where the batch is dynamic, with ones for what is float; flat."""
    info = capture_info(gm)
    values = [node.meta.get("val") for node in gm.graph.nodes if node.op == "placeholder"]
    leaves = pytree.tree_leaves((info.args, dict(info.kwargs)))
    return [_one_sample(leaf, value) for leaf, value in zip(leaves, values, strict=True)]


def _one_sample(leaf: Any, value: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    sample = leaf[:1] if leaf.ndim and isinstance(value.shape[0], torch.SymInt) else leaf
    return torch.ones_like(sample, dtype=torch.float64) if leaf.is_floating_point() else sample.clone()


class _Linearised(fx.Interpreter):
    """Runs the linearised network. A signal is its value in `env` times the exponential of that in `logs`."""

    def __init__(self, gm: fx.GraphModule, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self.signals, self.tensors = Signals(gm), tensors
        self.logs: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        sources = self.signals.read_by(n)
        self.logs[n] = max((self.logs[source] for source in sources), default=0.0)
        if n.op == "get_attr":
            return self._absolute(n)
        if n.op == "output":
            return torch.stack([self.aligned(source, n).sum() for source in sources]).sum().log() + self.logs[n]
        return _RULES[self.signals.kind_of(n)](self, n, sources)

    def as_it_is(self, node: fx.Node) -> Any:
        """The value of a node by its own operator."""
        return super().run_node(node)

    def aligned(self, source: fx.Node, node: fx.Node) -> Tensor:
        """The value of a signal, on the scale that `node` has."""
        value: Tensor = self.env[source]
        return value * math.exp(self.logs[source] - self.logs[node])

    def _absolute(self, node: fx.Node) -> Any:
        """What stands for a parameter or buffer: what is given for it, or absolute values; never the tensor itself."""
        value = attribute(self.module, str(node.target))
        if not isinstance(value, Tensor):
            return value
        if (name := self.signals.name_of(node)) is not None and name in self.tensors:
            return self.tensors[name].double()
        return value.detach().double().abs() if value.is_floating_point() else value.detach().clone()


def _passed(run: _Linearised, node: fx.Node, sources: list[fx.Node]) -> Any:
    value: Tensor = run.env[sources[0]]
    if isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags:
        value = value.expand(torch.broadcast_shapes(*(run.env[operand].shape for operand in tensor_arguments(node))))
    return _first_result(node, value)


def _first_result(node: fx.Node, value: Tensor) -> Any:
    """The value as that of a node that may have several, of which the others are no signals."""
    several = isinstance(node.meta["val"], list | tuple)
    return (value, *[None] * (len(node.meta["val"]) - 1)) if several else value


def _scaled(run: _Linearised, node: fx.Node, sources: list[fx.Node]) -> Any:
    (value, number), _ = run.fetch_args_kwargs_from_env(node)
    return run.call_function(node.target, (value, abs(number)), {})


def _gate(run: _Linearised, node: fx.Node, sources: list[fx.Node]) -> Tensor:
    run.logs[node] = 0.0
    even = torch.ones_like(run.env[sources[0]])
    return even / even.shape[argument(node, "dim")] if node.target is aten.softmax.int else even


def _attention(run: _Linearised, node: fx.Node, sources: list[fx.Node]) -> Any:
    (query, *others), kwargs = run.fetch_args_kwargs_from_env(node)
    run.logs[node] = run.logs[argument(node, "value")]
    return run.call_function(node.target, (torch.zeros_like(query), *others), kwargs)


def _pool(run: _Linearised, node: fx.Node, sources: list[fx.Node]) -> Any:
    """The mean for a maximum, over the same windows."""
    value: Tensor = run.env[sources[0]]
    if packet_of(node) in (aten.amax, aten.max):
        return _first_result(node, value.mean(argument(node, "dim", None), argument(node, "keepdim", False)))
    rank = str(node.target).partition("pool")[2][:1]
    if "adaptive" in str(node.target):
        return _first_result(node, getattr(F, f"adaptive_avg_pool{rank}d")(value, argument(node, "output_size")))
    dilation = argument(node, "dilation")
    if any(step != 1 for step in ([dilation] if isinstance(dilation, int) else dilation)):
        raise refused(node, "no mean is taken over dilated windows")
    window, pool = argument(node, "kernel_size"), getattr(F, f"avg_pool{rank}d")
    sizes = (window, argument(node, "stride") or window, argument(node, "padding"), argument(node, "ceil_mode"))
    return _first_result(node, pool(value, *sizes, count_include_pad=False))


def _padded(run: _Linearised, node: fx.Node, sources: list[fx.Node]) -> Tensor:
    (value, amounts, *_), _ = run.fetch_args_kwargs_from_env(node)
    return F.pad(value, amounts, argument(node, "mode", "constant"))


def _joined(run: _Linearised, node: fx.Node, sources: list[fx.Node]) -> Any:
    def operand(source: fx.Node) -> Any:
        if source in sources:
            return run.aligned(source, node)
        value = run.env[source]
        return torch.zeros_like(value, dtype=torch.float64) if isinstance(value, Tensor) else value

    args, kwargs = fx.map_arg((node.args, node.kwargs), operand)
    return run.call_function(node.target, args, kwargs)


def _added(run: _Linearised, node: fx.Node, sources: list[fx.Node]) -> Tensor:
    first, second = (run.aligned(source, node) for source in sources)
    return first.add(second, alpha=abs(argument(node, "alpha")))


def _multiplied(run: _Linearised, node: fx.Node, sources: list[fx.Node]) -> Any:
    run.logs[node] = math.fsum(run.logs[source] for source in sources)
    return run.as_it_is(node)


def _contracted(run: _Linearised, node: fx.Node, sources: list[fx.Node]) -> Tensor:
    """The product with the weight, of which the largest entry is 1: the rest goes into its log."""
    run.signals.weight_of(node)  # raises where the weight is computed
    args, kwargs = run.fetch_args_kwargs_from_env(node)
    if node.target in WEIGHTED:
        args, kwargs = (*args[:2], None, *args[3:]), {name: kwarg for name, kwarg in kwargs.items() if name != "bias"}
    value: Tensor = run.call_function(node.target, args, kwargs)
    peak = float(value.detach().max())
    if not 0 < peak < math.inf:
        return value
    run.logs[node] += math.log(peak)
    return value / peak


_RULES: dict[Kind, Callable[[_Linearised, fx.Node, list[fx.Node]], Any]] = {
    Kind.OTHER: lambda run, node, _: run.as_it_is(node),
    Kind.SOURCE: lambda run, node, _: torch.ones_like(run.as_it_is(node), dtype=torch.float64),
    Kind.MOVE: lambda run, node, _: run.as_it_is(node),
    Kind.PASS: _passed,
    Kind.SCALE: _scaled,
    Kind.GATE: _gate,
    Kind.ATTEND: _attention,
    Kind.POOL: _pool,
    Kind.PAD: _padded,
    Kind.JOIN: _joined,
    Kind.ADD: _added,
    Kind.MULTIPLY: _multiplied,
    Kind.CONTRACT: _contracted,
}
