"""Tidy: what computes nothing goes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.calls import bound_arguments
from fxprune.errors import RewriteError, describe
from fxprune.passes.views import merge_moves, unbind_selections

aten = torch.ops.aten
NoOp = Callable[[fx.Node], bool]


@dataclass(frozen=True, eq=False)
class Tidy(PassBase):
    """Removes dead code, calls that return their input, and second reads of the same parameter, in place.

    Before: any graph of ATen calls, or one that Lift made.
    After: the same values. Gone are calls without a reader, the tracer's assertions, `alias`, slices of everything,
        concatenations of one tensor, dropouts with p=0, a copy of a fresh tensor in a graph that overwrites nothing,
        `detach` of constants, and every `get_attr` of a name but the first. Dimensions that are moved in several steps
        are moved in one, and a tensor that is taken apart index by index is unbound.
        What can be seen from outside stays: memory layout, gradients, inputs and results that must not share memory.
    Postcondition: no such call is left; every value but the inputs has a reader.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrites in place; says whether anything changed."""
        graph = graph_module.graph
        modified = _remove_assertions(graph)
        modified |= _remove_no_ops(graph)
        modified |= _merge_reads(graph)
        modified |= merge_moves(graph)
        modified |= unbind_selections(graph)
        modified |= graph.eliminate_dead_code(_has_effects)
        if modified:
            graph_module.recompile()
        return PassResult(graph_module, modified)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """No call is left that returns its input, no name is read twice, and the graph is sound."""
        left = next((node for node in graph_module.graph.nodes if _returns_its_input(node)), None)
        if left is not None:
            raise RewriteError(f"{describe(left)} computes nothing and was not removed")
        reads = [node.target for node in graph_module.graph.nodes if node.op == "get_attr"]
        if len(set(reads)) != len(reads):
            raise RewriteError("a parameter is read by more than one node")
        graph_module.graph.lint()


_ASSERTIONS = {
    *(aten._assert_scalar.default, aten._assert_tensor_metadata.default, aten._assert_async.msg),
    *(aten.sym_constrain_range.default, aten.sym_constrain_range_for_size.default),
}


def _remove_assertions(graph: fx.Graph) -> bool:
    """What the tracer asserts of its own sizes is true of every graph that fxprune makes."""
    found = [node for node in graph.nodes if node.target in _ASSERTIONS and not node.users]
    for node in found:
        graph.erase_node(node)
    return bool(found)


def _remove_no_ops(graph: fx.Graph) -> bool:
    found = False
    for node in list(graph.nodes):  # in order: what is left of a chain shows only once its beginning is gone
        if _returns_its_input(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
            found = True
    return found


def _merge_reads(graph: fx.Graph) -> bool:
    first: dict[Any, fx.Node] = {}
    found = False
    for node in list(graph.nodes):
        if node.op == "get_attr" and first.setdefault(node.target, node) is not node:
            node.replace_all_uses_with(first[node.target])
            graph.erase_node(node)
            found = True
    return found


def _is_alias(node: fx.Node) -> bool:
    return True


def _is_copy_that_may_share(node: fx.Node) -> bool:
    """A copy that nobody can tell from the original: of a fresh tensor or constant, with nothing ever overwritten."""
    source = node.all_input_nodes[0]
    leaves = any(user.op == "output" for user in node.users)
    constant = source.op == "get_attr" and not leaves
    return not node.kwargs.get("memory_format") and not _overwrites(node.graph) and (constant or _is_fresh(source))


def _is_lone_concatenation(node: fx.Node) -> bool:
    return isinstance(node.args[0], (list, tuple)) and len(node.args[0]) == 1 and _is_copy_that_may_share(node)


def _is_detach_of_constant(node: fx.Node) -> bool:
    source = node.all_input_nodes[0]
    while _operation(source) in {"detach", "lift_fresh_copy"}:
        source = source.all_input_nodes[0]
    owner = node.graph.owning_module
    if source.op != "get_attr" or owner is None:
        return False
    path, _, leaf = str(source.target).rpartition(".")
    return not isinstance(getattr(owner.get_submodule(path), leaf), nn.Parameter)


def _is_whole(node: fx.Node) -> bool:
    given = bound_arguments(node)
    return given["start"] in (0, None) and given["end"] in (sys.maxsize, None) and given["step"] == 1


def _is_dropout_of_nothing(node: fx.Node) -> bool:
    return bool(node.args[1] == 0)


_NO_OPS: dict[str, NoOp] = {
    "alias": _is_alias,
    "clone": _is_copy_that_may_share,
    "lift_fresh_copy": _is_copy_that_may_share,
    "cat": _is_lone_concatenation,
    "detach": _is_detach_of_constant,
    "dropout": _is_dropout_of_nothing,
    "slice": _is_whole,
}


def _operation(node: fx.Node) -> str:
    """The name of what the node calls, for an ATen call as for a lifted one; "" for a module."""
    if isinstance(node.target, OpOverload):
        return node.target._schema.name.removeprefix("aten::")
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def _returns_its_input(node: fx.Node) -> bool:
    applies = _NO_OPS.get(_operation(node))
    return applies is not None and applies(node)


def _is_fresh(node: fx.Node) -> bool:
    """Whether the node makes a new tensor, laid out densely: neither an input nor a view."""
    if isinstance(node.target, OpOverload):
        return not any(result.alias_info for result in node.target._schema.returns)
    return False


def _has_effects(node: fx.Node) -> bool:
    """Whether the call does more than give its result; fx does not know that `x.fill_(1)` does."""
    return node.is_impure() or (node.op == "call_method" and str(node.target).endswith("_"))


def _overwrites(graph: fx.Graph) -> bool:
    """Whether any call writes into a tensor that it was given."""
    owner = graph.owning_module
    modules = [owner.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module" and owner]
    schemas = [node.target._schema for node in graph.nodes if isinstance(node.target, OpOverload)]
    methods = [str(node.target) for node in graph.nodes if node.op == "call_method"]
    return (
        any(getattr(module, "inplace", False) for module in modules)
        or any(schema.is_mutable for schema in schemas)
        or any(name.endswith("_") for name in methods)
    )
