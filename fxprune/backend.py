"""The `fxprune` backend of torch.compile: a plan is applied to the graph that dynamo traced, and inductor goes on.

    torch.compile(model, fullgraph=True, backend="fxprune", options={"plan": plan})

Dynamo hands over a graph whose parameters are inputs. Each is found in the module that it came from, by its place and
by identity. The compiled graph takes the kept part of it at every call: new weights, and gradients, get through.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.registry import lookup_backend
from torch._guards import tracing
from torch.export import Dim

from fxprune.backend_inputs import inputs_of, parameters_of, source_of
from fxprune.calls import device_of
from fxprune.capture import capture, capture_info, last_capture
from fxprune.coupling import analyze
from fxprune.coupling.check import check_plan
from fxprune.coupling.kept import Kept
from fxprune.errors import CaptureError, PlanError
from fxprune.passes.base import COUPLING, DENSE, PLAN, state
from fxprune.passes.shrink import shrink
from fxprune.passes.sizes import moved_positions
from fxprune.types import Plan

aten = torch.ops.aten
Compiled = Callable[..., Any]
_OPTIONS = ("inner", "plan")
_FUSED_ATTENTION = {torch._transformer_encoder_layer_fwd, torch._native_multi_head_attention}


def fxprune(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None, **rest: Any
) -> Compiled:
    """Compile what `gm` computes without the units that a plan removes.

    options: "plan", a Plan, its JSON text, or the path of a file with it; "inner", the backend that goes on, "inductor"
        where nothing is said.
    rest: handed to that backend.

    The module is in evaluation mode, and its forward is one graph. Raises PlanError where the plan does not fit, or
    where what it removes of a parameter is not what it removes in the module by itself, and CaptureError where the
    module behind a parameter cannot be told. torch.compile wraps both in its BackendCompilerFailed.
    """
    given = dict(options or {})
    if unknown := sorted(set(given) - set(_OPTIONS)):
        raise PlanError(f"backend fxprune has no option {unknown[0]!r}; there are: {', '.join(_OPTIONS)}")
    plan = _plan(given.get("plan"))
    inner = lookup_backend(given.get("inner", "inductor"))
    if next(gm.parameters(), None) is not None:
        raise CaptureError(
            "the graph holds its parameters, where dynamo makes them inputs: use the backend through torch.compile"
        )
    if any(node.target in _FUSED_ATTENTION for node in gm.graph.nodes):
        raise CaptureError("attention is one fused operator here: call torch.backends.mha.set_fastpath_enabled(False)")
    if torch.is_grad_enabled() and any(node.target is torch._C._set_grad_enabled for node in gm.graph.nodes):
        raise CaptureError("the forward switches gradients off in places, which is not kept: compile under no_grad()")
    values = dict(zip(inputs_of(gm), example_inputs, strict=True))
    module, names = parameters_of(gm, values)
    if module is None:
        return inner(gm, list(example_inputs), **rest)  # a part of the program that no plan is about
    with tracing(None):  # what is traced here is not part of what dynamo traces
        small = _shrunk(_captured(gm, module, names, values), plan)
        planned = _planned(small, values, names, _expected(plan, module))
    return inner(planned, list(example_inputs), **rest)


def _plan(given: Any) -> Plan:
    """The plan that an option names. Raises PlanError where it names none."""
    if isinstance(given, Plan):
        return given
    if isinstance(given, str) and given.lstrip().startswith("{"):
        return Plan.from_json(given)
    if not isinstance(given, (str, Path)):
        raise PlanError('backend fxprune needs options={"plan": a Plan, its JSON text, or the path of a file with it}')
    try:
        return Plan.from_json(Path(given).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"the plan at {given} cannot be read: {error.strerror or error}") from error


def _shrunk(traced: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    """The trace without what the plan removes."""
    try:
        return shrink(traced, plan)
    except PlanError as error:
        raise PlanError(
            f"{error}. The backend sees one graph at a time: compile the planned module with fullgraph=True"
        ) from error


class _Container(nn.Module):
    """Holds tensors, and other containers."""


def _captured(
    gm: fx.GraphModule, module: nn.Module, names: Mapping[fx.Node, str], values: Mapping[fx.Node, Any]
) -> fx.GraphModule:
    """The ATen graph of `gm`, with parameters and buffers as attributes, named and ordered as in the module."""
    graph, root = fx.Graph(), _Container()
    place = {name: index for index, name in enumerate(module.state_dict())}  # groups are named by the order of these
    ordered = sorted(names.items(), key=lambda item: place.get(item[1], len(place)))
    for node, name in ordered:
        _set(root, name, values[node])
    new = {node: graph.get_attr(name) for node, name in ordered}
    free = [node for node in values if node not in names]
    tensors = [node for node in free if isinstance(values[node], Tensor)]
    new |= {node: graph.placeholder(node.name) for node in tensors}
    new |= {node: _size(node, tensors, new, graph) for node in free if node not in new}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            _set(root, str(node.target), operator.attrgetter(str(node.target))(gm))
        if node.op != "placeholder":
            new[node] = graph.node_copy(node, new.__getitem__)
    open_sizes = {node.name: dict.fromkeys(_open(node), Dim.AUTO) or None for node in tensors}
    traced = capture(fx.GraphModule(root, graph), tuple(values[node] for node in tensors), None, open_sizes)
    for node, found in zip(tensors, inputs_of(traced), strict=True):
        if fixed := [dim for dim in _open(node) if not isinstance(found.meta["val"].shape[dim], torch.SymInt)]:
            raise CaptureError(f"size {fixed[0]} of {source_of(node)} cannot stay dynamic: compile with dynamic=False")
    return traced


def _open(node: fx.Node) -> list[int]:
    """The dimensions of an input whose sizes dynamo holds open."""
    return [dim for dim, size in enumerate(node.meta["example_value"].shape) if isinstance(size, torch.SymInt)]


def _size(size: fx.Node, tensors: Sequence[fx.Node], new: Mapping[fx.Node, fx.Node], graph: fx.Graph) -> fx.Node:
    """A size that dynamo hands over beside the tensors, read off the tensor that has it."""
    wanted = str(size.meta["example_value"])
    for node in tensors:
        for dim in _open(node):
            if str(node.meta["example_value"].shape[dim]) == wanted:
                return graph.call_method("size", (new[node], dim))
    raise CaptureError(f"the input {source_of(size)} is a number that changes: make it a constant of the forward")


def _set(root: nn.Module, name: str, value: Any) -> None:
    """Put a tensor or module under a dotted name, with containers above it."""
    path, _, leaf = name.rpartition(".")
    for part in path.split(".") if path else ():
        if part not in root._modules:
            root.add_module(part, _Container())
        root = root.get_submodule(part)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        root.register_buffer(leaf, value)
    else:
        setattr(root, leaf, value)


def _expected(plan: Plan, module: nn.Module) -> Kept:
    """What the plan leaves in the module by itself, whatever graph it is part of."""
    known = last_capture(module)
    if known is not None:
        gm = capture(module, capture_info(known).args, capture_info(known).kwargs)
    elif plan.inputs:
        gm = capture(module, tuple(_example(shape, dtype, module) for shape, dtype in plan.inputs))
    else:
        raise PlanError("a plan without inputs cannot be checked: call fxprune.capture(model, example_inputs) first")
    coupling = analyze(gm, plan.heads)
    return Kept.under(coupling, check_plan(coupling, plan))


def _example(shape: Sequence[int], dtype: str, module: nn.Module) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype.removeprefix("torch."))
    make = torch.randn if kind.is_floating_point else torch.zeros
    return make(tuple(shape), dtype=kind, device=device_of(module))


def _planned(
    small: fx.GraphModule, values: Mapping[fx.Node, Any], names: Mapping[fx.Node, str], expected: Kept
) -> fx.GraphModule:
    """The shrunk calls behind the inputs that dynamo gives: each parameter is cut where it comes in."""
    kept = Kept.under(state(small)[COUPLING], state(small)[PLAN])
    moved = moved_positions(state(small)[DENSE], kept)
    graph, root = fx.Graph(), _Container()
    inputs = {node: graph.node_copy(node) for node in values}
    cut: dict[str, fx.Node] = {}
    for node, name in names.items():
        cut[name] = _cut(graph, root, inputs[node], name, kept, expected)
        if name in moved:
            table = _constant(graph, root, moved[name].to(values[node]))
            cut[name] = graph.call_function(aten.take.default, (table, cut[name]))
    free = iter([inputs[node] for node, value in values.items() if node not in names and isinstance(value, Tensor)])
    new: dict[fx.Node, fx.Node] = {}
    for node in small.graph.nodes:
        if node.op == "placeholder":
            new[node] = next(free)
        elif node.op == "get_attr" and str(node.target) in cut:
            new[node] = cut[str(node.target)]
            if any(user.target is aten.copy_.default and user.args[0] is node for user in node.users):
                raise CaptureError(f"the forward writes into `{node.target}`: that a plan cannot follow")
        elif node.op == "output":
            graph.output(fx.map_arg(tuple(node.args[0]), new.__getitem__))
        else:
            if node.op == "get_attr":
                _set(root, str(node.target), operator.attrgetter(str(node.target))(small))
            new[node] = graph.node_copy(node, new.__getitem__)
    return fx.GraphModule(root, graph)


def _cut(graph: fx.Graph, root: nn.Module, node: fx.Node, name: str, kept: Kept, expected: Kept) -> fx.Node:
    """The part of a tensor that stays. Raises PlanError where it is another one in the module by itself."""
    value: Tensor = node.meta["example_value"]
    numbers = torch.arange(value.numel()).reshape(value.shape)
    stays, wanted = (item.cut(numbers, item.coupling.param_fields.get(name, ())) for item in (kept, expected))
    if not torch.equal(stays, wanted):
        raise PlanError(f"the plan leaves another part of `{name}` in this graph than in the module by itself")
    for dim, index in _indices(stays, numbers):
        position = _constant(graph, root, index.to(value.device))
        operation = aten.take.default if dim is None else aten.index_select.default
        node = graph.call_function(operation, (node, position) if dim is None else (node, dim, position))
    return node


def _indices(stays: Tensor, numbers: Tensor) -> list[tuple[int | None, Tensor]]:
    """The positions to select along each dimension; of the flattened tensor where they are no outer product."""
    rows: list[tuple[int | None, Tensor]] = []
    found = numbers
    for dim, (size, stride) in enumerate(zip(numbers.shape, numbers.stride(), strict=True)):
        along = stays.movedim(dim, -1).reshape(-1, stays.shape[dim])[0]
        index = along // stride % size
        if not torch.equal(index, torch.arange(size)):
            rows.append((dim, index))
            found = found.index_select(dim, index)
    return rows if torch.equal(found, stays) else [(None, stays)]


def _constant(graph: fx.Graph, root: nn.Module, value: Tensor) -> fx.Node:
    """A tensor of ours, under a name that no network has."""
    name = f"_fxprune.positions_{sum(1 for _ in root.buffers())}"
    _set(root, name, value)
    return graph.get_attr(name)
