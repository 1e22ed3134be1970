"""Pieces of a graph, one after another, whose times add up to about that of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.passes.split_module import split_module

from fxprune.flops import FLOPS

aten = torch.ops.aten
PREFIX = "submod_"  # of the names that split_module gives


class Piece(NamedTuple):
    """The calls of a piece, with what they read from outside and what others read of them."""

    calls: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


def pieces_of(gm: fx.GraphModule, fused: bool) -> dict[str, Piece]:
    """The pieces of a captured graph by their names, in order."""
    names = _names(gm.graph, fused)
    calls: dict[str, list[fx.Node]] = {}
    for node, name in names.items():
        if node.target is not aten.copy_.default:
            calls.setdefault(PREFIX + name, []).append(node)
    return {name: _piece(inside) for name, inside in calls.items()}


def _piece(calls: Sequence[fx.Node]) -> Piece:
    inputs = dict.fromkeys(source for node in calls for source in node.all_input_nodes if source not in calls)
    outputs = (node for node in calls if any(user not in calls for user in node.users))
    return Piece(tuple(calls), tuple(inputs), tuple(outputs))


def _names(graph: fx.Graph, fused: bool) -> dict[fx.Node, str]:
    """For each call of a graph the first call of its piece, by name.

    fused: what lies between convolutions and matrix products is one piece, as a compiler makes it one kernel or a few.
        Else each call that is no view is one, with the views before it.
    """
    pieces: dict[fx.Node, str] = {}
    current = ""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if fused and node.target in FLOPS:
            current = ""
        current = pieces[node] = current or node.name
        if node.target in FLOPS or not (fused or _takes_no_time(node)):
            current = ""
    return pieces


def split(gm: fx.GraphModule, fused: bool) -> fx.GraphModule:
    """A graph that calls the pieces of `gm` in turn: its submodules, which get all their tensors as inputs."""
    bare = without_writes(gm)
    names = {node.name: name for node, name in _names(bare.graph, fused).items()}
    return split_module(bare, bare, lambda node: names[node.name], keep_original_order=True)  # type: ignore[arg-type,return-value] # partitions may have any names


def without_writes(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of a captured graph on the same parameters, with plain inputs, that writes none of its buffers and inputs.

    It has buffers of its own, for a BatchNorm in training writes them in the middle of the graph.
    """
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        if node.target is aten.copy_.default:
            copied[node] = copied[node.args[1]]
        elif node.op == "output":
            graph.output(fx.map_arg(node.args[0], copied.__getitem__))
        else:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    bare = fx.GraphModule(gm, graph)
    for name, buffer in list(bare.named_buffers()):
        path, _, leaf = name.rpartition(".")
        setattr(bare.get_submodule(path), leaf, buffer.clone())
    return bare


def calls_of(piece: fx.GraphModule) -> str:
    """What a piece computes of its inputs, which go by their numbers."""
    names: dict[fx.Node, str] = {}
    lines = []
    for node in piece.graph.nodes:
        names[node] = f"%{len(names)}"
        if node.op == "call_function":
            lines.append(f"{_target(node)}({_arguments(node, names)})")
    return "; ".join(lines)


def described(value: object) -> str:
    """An input by type, shape and strides, never by its numbers."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(described, value))})"
    if not isinstance(value, Tensor):
        return repr(value)
    strides = "" if value.is_contiguous() else f" strides {list(value.stride())}"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{strides}"


def _takes_no_time(node: fx.Node) -> bool:
    """Whether a call only says where something is: a view, an item of a tuple, a size."""
    return not isinstance(node.target, torch._ops.OpOverload) or node.target.is_view or "sym_" in str(node.target)


class _Bare(str):
    """A name that is printed without quotes, also within a list."""

    __slots__ = ()
    __repr__ = str.__str__


def _arguments(node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _Bare(names[source]))
    return ", ".join([*map(str, args), *(f"{name}={value}" for name, value in kwargs.items())])


def _target(node: fx.Node) -> str:
    return (
        str(node.target) if isinstance(node.target, torch._ops.OpOverload) else node._pretty_print_target(node.target)
    )
