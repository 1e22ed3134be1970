"""Evaluation on demand: from some values of a graph to others, with nothing kept that is no longer needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from fxprune import calls
from fxprune.calls import RECURRENT, device_of

Values = dict[str, Any]


def attribute(gm: fx.GraphModule, name: str) -> Tensor:
    """The tensor of a graph under its dotted name, detached."""
    value = calls.attribute(gm, name)
    assert isinstance(value, Tensor)
    return value.detach()


class Evaluator:
    """Computes values of nodes of `gm` from values of other nodes.

    offsets: per-channel corrections by node name, added to the value of that node as soon as it is computed. May be
        changed between calls, as may the parameters of `gm`.
    """

    def __init__(self, gm: fx.GraphModule, offsets: Mapping[str, Tensor] | None = None) -> None:
        self.gm = gm
        self.offsets: dict[str, Tensor] = dict(offsets or {})
        self.nodes = {node.name: node for node in gm.graph.nodes}
        self._mutating = {node.name for node in gm.graph.nodes if _mutates(node)}
        self._order = {name: position for position, name in enumerate(self.nodes)}
        self._schedules: dict[tuple[frozenset[str], frozenset[str]], list[tuple[fx.Node, list[str]]]] = {}

    def __call__(self, wanted: Iterable[str], given: Mapping[str, Any]) -> Values:
        """The values of the nodes `wanted`, given those of others. Raises KeyError where an input is missing."""
        targets = frozenset(wanted)
        values = dict(given)
        for node, expired in self._schedule(targets, frozenset(given)):
            values[node.name] = self.run(node, values)
            for name in expired:
                del values[name]
        return {name: values[name] for name in targets}

    def run(self, node: fx.Node, values: Mapping[str, Any]) -> Any:
        """The value of one node, given those of its inputs."""
        if node.op == "get_attr":
            return attribute(self.gm, str(node.target))
        if node.op != "call_function":
            raise KeyError(f"the value of {node.op} `{node.name}` is not given")
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda argument: values[argument.name])
        if node.name in self._mutating:
            args, kwargs = pytree.tree_map(_copied, (args, kwargs))  # calibration must not write into buffers
        with _differentiable(node):
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        offset = self.offsets.get(node.name)
        return result if offset is None else result + offset

    def alive_at(self, name: str, inclusive: bool) -> tuple[str, ...]:
        """The nodes before `name` (or up to it) whose values are needed after it (or from it on), parameters apart."""
        cut = self._order[name] + inclusive
        order = self._order
        return tuple(
            node.name
            for node in list(self.nodes.values())[:cut]
            if node.op != "get_attr" and any(order[user.name] >= cut for user in node.users)
        )

    def _schedule(self, wanted: frozenset[str], given: frozenset[str]) -> list[tuple[fx.Node, list[str]]]:
        """The nodes to run, in order, each with the names whose values are no longer needed after it."""
        key = (wanted, given)
        if key not in self._schedules:
            needed: set[str] = set()
            stack = [name for name in wanted if name not in given]
            while stack:
                name = stack.pop()
                if name not in needed:
                    needed.add(name)
                    stack += [n.name for n in self.nodes[name].all_input_nodes if n.name not in given]
            order = [self.nodes[name] for name in sorted(needed, key=self._order.__getitem__)]
            last = {argument.name: node.name for node in order for argument in node.all_input_nodes}
            expiring: dict[str, list[str]] = {}
            for name, user in last.items():
                if name not in wanted:
                    expiring.setdefault(user, []).append(name)
            self._schedules[key] = [(node, expiring.get(node.name, [])) for node in order]
        return self._schedules[key]


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _differentiable(node: fx.Node) -> AbstractContextManager[None]:
    """Where gradients are wanted of a recurrent layer, without cuDNN, which has none outside of training."""
    if node.target in RECURRENT and torch.is_grad_enabled():
        without: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=False)
        return without
    return nullcontext()


def centred(output: Tensor) -> Tensor:
    """An output as rows, one for each image, less their mean; single numbers less the mean over the images.

    What is not finite, such as masked logits, counts as zero.
    """
    rows = rows_of(output)
    return rows - rows.mean(int(rows.shape[1] > 1), keepdim=True)


def rows_of(output: Tensor) -> Tensor:
    """An output as rows, one for each image; what is not finite counts as zero."""
    rows = output.reshape(len(output), -1) if output.ndim else output.reshape(1, 1)
    return torch.nan_to_num(rows, 0.0, 0.0, 0.0)


def outputs_of(gm: fx.GraphModule) -> tuple[str, ...]:
    """The names of the nodes that the graph returns."""
    node = next(iter(reversed(gm.graph.nodes)))
    return tuple(argument.name for argument in node.all_input_nodes)


def judged_of(gm: fx.GraphModule) -> tuple[str, ...]:
    """The names of the nodes by which a network is judged: what it returns, inputs handed through apart; where none of
    that is floating-point, the floating-point values that it is made of, such as the logits under an argmax."""
    outputs, inputs = outputs_of(gm), inputs_of(gm)
    returned = tuple(name for name in outputs if name not in inputs) or outputs
    stack = [node for node in gm.graph.nodes if node.name in returned]
    if any(map(is_floating, stack)):
        return returned
    found, seen = set[str](), set[fx.Node]()
    while stack:
        node = stack.pop()
        seen.add(node)
        if not is_floating(node):
            carriers = (n for n in node.all_input_nodes if isinstance(n.meta.get("val"), (Tensor, tuple, list)))
            stack += [n for n in carriers if n not in seen]
        elif node.op == "call_function":
            found.add(node.name)
    return tuple(node.name for node in gm.graph.nodes if node.name in found) or returned


def is_floating(node: fx.Node) -> bool:
    """Whether the value of a node is a floating-point tensor."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def inputs_of(gm: fx.GraphModule) -> tuple[str, ...]:
    """The names of the placeholders."""
    return tuple(node.name for node in gm.graph.nodes if node.op == "placeholder")


def to_device(gm: fx.GraphModule, batch: tuple[Tensor, ...]) -> Values:
    """A batch as the values of the placeholders, where the parameters are."""
    device = device_of(gm)
    return {name: tensor.to(device) for name, tensor in zip(inputs_of(gm), batch, strict=True)}
