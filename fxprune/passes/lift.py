"""Lift: an ATen graph becomes a graph of modules, functions and methods, under the original's names."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.calls import bound_arguments
from fxprune.capture import META, Capture, HandedOn
from fxprune.codegen.candidates import Candidate, candidate, stack_class
from fxprune.codegen.devices import follow_devices
from fxprune.codegen.forward import ReadableCodeGen
from fxprune.codegen.modules import FREE
from fxprune.codegen.signature import plain_signature
from fxprune.codegen.source import class_name
from fxprune.codegen.spelling import spell
from fxprune.codegen.tree import install, named_tensors
from fxprune.errors import RewriteError, describe, source_line

aten = torch.ops.aten
_DROPOUTS = {
    *(aten.dropout.default, aten.feature_dropout.default),
    *(aten.alpha_dropout.default, aten.feature_alpha_dropout.default),
}


@dataclass(frozen=True, eq=False)
class Lift(PassBase):
    """Lifts ATen calls to modules under the original's names, in place; what no module owns becomes torch code.

    Before: an ATen graph with parameters as `get_attr` nodes, as `capture` and `shrink` make it.
    After: `call_module` nodes on modules of torch.nn, built from the calls' own tensors and arguments and holding the
        very same parameters and buffers; everything else as operators, methods, F and torch functions. The signature
        is the original's, and `.code` is the ReadableCodeGen's. The module is in evaluation mode.
    Postcondition: no ATen call is left that has a spelling; the names of the state_dict are the original's, in order.

    What `.train()` lacks is in `meta["fxprune"]["training_notes"]`: a tuple of sentences. Dropouts that no nn.Dropout
    owns are dropped. Raises RewriteError for a graph that `capture` did not make.
    """

    def requires(self, graph_module: fx.GraphModule) -> None:
        """The graph comes from `capture`."""
        if not isinstance(graph_module.meta.get(META, {}).get("capture"), Capture):
            raise RewriteError("Lift needs a graph made by fxprune.capture: call fxprune.capture(model, inputs) first")

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrites in place; a graph that is lifted already is left alone."""
        graph = graph_module.graph
        if isinstance(graph._codegen, ReadableCodeGen):
            return PassResult(graph_module, False)
        notes = _drop_functional_dropout(graph)
        tensors = named_tensors(graph_module)
        lifted = _lift_modules(graph, tensors)
        notes += _spell_functions(graph)
        plain_signature(graph)
        follow_devices(graph)
        _merge_slices(graph)
        _name_like_symbolic_trace(graph)
        order = graph_module.meta[META]["capture"].names
        called = [str(node.target) for node in graph.nodes if node.op == "call_module" and node.target in lifted]
        _shed_export(graph_module)
        install(graph_module, order, lifted, called)
        for node in [node for node in graph.nodes if node.op == "get_attr" and not node.users]:
            graph.erase_node(node)
        graph.set_codegen(ReadableCodeGen())
        graph_module.recompile()
        graph_module.eval()
        graph_module.meta[META] = HandedOn({**graph_module.meta[META], "training_notes": tuple(notes)})
        return PassResult(graph_module, True)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """No ATen call with a spelling is left, and the graph is sound."""
        for node in graph_module.graph.nodes:
            if node.op == "call_function" and spell(node) is not None:
                raise RewriteError(f"{describe(node)} was not lifted")
        graph_module.graph.lint()


def _drop_functional_dropout(graph: fx.Graph) -> list[str]:
    """Takes out dropouts that no module owns: they are the identity in evaluation, and have no training flag."""
    notes = []
    for node in list(graph.nodes):
        if node.target in _DROPOUTS and not node.args[2] and stack_class(node) not in FREE[node.target]:
            where = source_line(node) or f"`{node.name}`"
            notes.append(f"a functional dropout (p={node.args[1]}) is not applied in training: {where}")
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return notes


def _lift_modules(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Turns calls into `call_module` nodes wherever all calls of one path agree; gives the modules by path."""
    calls: dict[str, list[tuple[fx.Node, Candidate]]] = {}
    for node in graph.nodes:
        found = candidate(node, tensors)
        if found is not None:
            calls.setdefault(found.path, []).append((node, found))
    lifted: dict[str, nn.Module] = {}
    for path, candidates in calls.items():
        inside = any(path.startswith(f"{other}.") for other in calls)  # a module of torch.nn holds no others
        if not inside and len({repr(item.module) for _, item in candidates}) == 1:
            lifted[path] = candidates[0][1].module
            for node, item in candidates:
                freed = [source for source in node.all_input_nodes if source.op == "call_function"]
                node.op, node.target = "call_module", path
                node.args, node.kwargs = item.args, {}
                _erase_unread(freed)
                if isinstance(item.module, nn.LSTM):
                    _nest_states(node)
    return lifted


def _erase_unread(nodes: Iterable[fx.Node]) -> None:
    """Takes out calls that nobody reads any more, and what only they read."""
    for node in nodes:
        if not node.users and node.op == "call_function" and not node._erased:
            sources = node.all_input_nodes
            node.graph.erase_node(node)
            _erase_unread(sources)


def _nest_states(node: fx.Node) -> None:
    """nn.LSTM returns `y, (h, c)` where the operator returns `y, h, c`."""
    output, *states = node.meta["val"]
    picks = [user for user in node.users if user.args[1] != 0]
    node.meta["val"] = (output, tuple(states))
    if not picks:
        return
    with node.graph.inserting_after(node):
        pair = node.graph.call_function(operator.getitem, (node, 1))
    pair.meta = {**node.meta, "val": tuple(states)}
    for user in picks:
        assert isinstance(user.args[1], int)
        user.args = (pair, user.args[1] - 1)


def _spell_functions(graph: fx.Graph) -> list[str]:
    """Writes the calls that are left as functions, operators and methods; notes those that training lacks."""
    notes = []
    for node in graph.nodes:
        spelling = spell(node) if node.op == "call_function" else None
        if node.target is aten.batch_norm.default and bound_arguments(node)["running_mean"] is not None:
            where = source_line(node) or f"`{node.name}`"
            notes.append(f"a functional batch_norm keeps its running statistics in training: {where}")
        if spelling is not None:
            node.op = "call_method" if isinstance(spelling.target, str) else "call_function"
            node.target, node.args, node.kwargs = spelling
    return notes


def _name_like_symbolic_trace(graph: fx.Graph) -> None:
    """Calls of modules are named after them, as `torch.fx.symbolic_trace` names them."""
    for node in graph.nodes:
        if node.op == "call_module":
            node._rename(str(node.target).replace(".", "_"))


def _merge_slices(graph: fx.Graph) -> None:
    """`x[:, :][:, :, ::2][:, :, :, ::2]` becomes `x[:, :, ::2, ::2]`."""
    for node in list(graph.nodes):
        if not _is_slicing(node):
            continue
        source, index = node.args
        merged = _merged(source.args[1], index) if _is_slicing(source) and len(source.users) == 1 else None
        if merged is not None:
            node.args = (source.args[0], merged)
            graph.erase_node(source)
        source, index = node.args
        if all(item == slice(None) for item in index):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _is_slicing(node: Any) -> bool:
    """Whether the node is a subscript of slices only."""
    if not isinstance(node, fx.Node) or node.target is not operator.getitem or not isinstance(node.args[1], tuple):
        return False
    return all(isinstance(item, slice) for item in node.args[1])


def _merged(first: tuple[slice, ...], second: tuple[slice, ...]) -> tuple[slice, ...] | None:
    """One subscript for two in a row; None where both cut the same dimension."""
    pairs = list(itertools.zip_longest(first, second, fillvalue=slice(None)))
    if any(slice(None) not in pair for pair in pairs):
        return None
    return tuple(one if other == slice(None) else other for one, other in pairs)


def _shed_export(gm: fx.GraphModule) -> None:
    """Takes off what torch.export put on the module itself: hooks, guards and the refusal of `.train()`."""
    gm.__class__ = type(fx.GraphModule.__new__(fx.GraphModule))
    type(gm).__name__ = class_name(gm.graph)
    for attribute in ("train", "eval", "_in_spec", "_out_spec", "shape_env", "range_constraints", "validate_inputs"):
        gm.__dict__.pop(attribute, None)
    for hooks in (gm._forward_hooks, gm._forward_hooks_with_kwargs, gm._forward_hooks_always_called):
        hooks.clear()
    gm._forward_pre_hooks.clear()
    gm._forward_pre_hooks_with_kwargs.clear()
