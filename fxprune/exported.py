"""Exported programs: one goes in, one comes out, with the same signature, names and dynamic sizes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    OutputKind,
    OutputSpec,
    SymIntArgument,
    TensorArgument,
)

from fxprune.api import pipeline
from fxprune.budget import Budget
from fxprune.capture import capture
from fxprune.codegen.tree import named_tensors
from fxprune.coupling.check import require_plan
from fxprune.errors import CaptureError
from fxprune.passes import shrink as graphs
from fxprune.passes.base import own_copy
from fxprune.passes.lift import Lift
from fxprune.passes.tidy import Tidy
from fxprune.types import Plan

_MUTATIONS = {OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION}


@overload
def shrink(network: fx.GraphModule, plan: Plan) -> fx.GraphModule: ...


@overload
def shrink(network: ExportedProgram, plan: Plan) -> ExportedProgram: ...


def shrink(network: fx.GraphModule | ExportedProgram, plan: Plan) -> fx.GraphModule | ExportedProgram:
    """A copy of a captured graph, or of an exported program, without what `plan` removes.

    Raises PlanError on a plan that does not fit the network, or is none.
    """
    require_plan(plan)
    if isinstance(network, ExportedProgram):
        return rebuilt(network, graphs.shrink(capture(network), plan))
    if not isinstance(network, fx.GraphModule):
        raise CaptureError(
            f"{type(network).__name__} is no graph: fxprune.shrink(fxprune.capture(model, example_inputs), plan), or "
            "plan.apply(model) for a copy of the module itself"
        )
    return graphs.shrink(network, plan)


def prune_exported(
    program: ExportedProgram, *, budget: Budget, calibration: Any = None, recipe: str = "psp", **options: Any
) -> ExportedProgram:
    """The program, shrunk to a budget, with the metadata of its calls as it was, so that PT2E still quantizes it.

    budget, calibration, recipe and other options: as in `pipeline`.

    Raises what `prune` raises.
    """
    if not isinstance(program, ExportedProgram):
        raise CaptureError(f"{type(program).__name__} is no ExportedProgram: fxprune.prune takes modules and graphs")
    gm = own_copy(capture(program))
    for step in pipeline(recipe, budget=budget, calibration=calibration, **options):
        if not isinstance(step, (Tidy, Lift)):
            step(gm)
    return rebuilt(program, gm)


def rebuilt(program: ExportedProgram, gm: fx.GraphModule) -> ExportedProgram:
    """`program` with the calls and tensors of `gm`, a rewritten form of its captured graph.

    Inputs, parameters and buffers keep their names and order, results theirs; what the program writes into buffers and
    inputs is returned where it was, or written by a call where it was.
    """
    tensors = named_tensors(gm)
    signature = program.graph_signature
    graph, values = _with_inputs(program, gm, tensors)
    returned = {str(spec.target) for spec in signature.output_specs if spec.kind in _MUTATIONS}
    written: dict[str, fx.Node] = {}
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is torch.ops.aten.copy_.default and (name := _name(node.args[0])) in returned:
            written[name] = values[node] = values[node.all_input_nodes[-1]]
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    results: Any = fx.map_arg(gm.graph.output_node().args[0], values.__getitem__)
    outputs = _outputs(signature, list(results), written)
    graph.output(tuple(value for _, value in outputs))
    graph.output_node().meta = dict(program.graph.output_node().meta)
    return _program(program, graph, [spec for spec, _ in outputs], tensors)


def _name(node: Any) -> str:
    """The name of a buffer or input as signatures have it."""
    return str(node.target)


def _with_inputs(
    program: ExportedProgram, gm: fx.GraphModule, tensors: Mapping[str, Tensor]
) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A graph with the program's inputs, and which of them stands for which read or input of `gm`."""
    graph, values = fx.Graph(), {}
    old = {node.name: node for node in program.graph.nodes}
    inputs = (node for node in gm.graph.nodes if node.op == "placeholder")
    reads: dict[str, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            reads.setdefault(str(node.target), []).append(node)
    mode = detect_fake_mode([node.meta.get("val") for node in program.graph.nodes])
    for spec in program.graph_signature.input_specs:
        made = graph.placeholder(spec.arg.name)
        made.name = spec.arg.name  # placeholder() renames what is a function of Python, such as `input`
        made.meta = dict(old[spec.arg.name].meta)
        known = [next(inputs)] if spec.kind is InputKind.USER_INPUT else reads.get(str(spec.target), [])
        values.update(dict.fromkeys(known, made))
        if known:
            made.meta["val"] = known[0].meta["val"]
        elif mode is not None and str(spec.target) in tensors:  # a tensor that no call reads
            made.meta["val"] = mode.from_tensor(tensors[str(spec.target)], static_shapes=True)
    return graph, values


def _outputs(
    signature: ExportGraphSignature, results: list[Any], written: Mapping[str, fx.Node]
) -> list[tuple[OutputSpec, Any]]:
    """Each output of the signature with its value; a value that is written into a tensor comes first, as before."""
    left = iter(results)
    found = []
    for spec in signature.output_specs:
        value = written[str(spec.target)] if spec.kind in _MUTATIONS else next(left)
        found.append((OutputSpec(spec.kind, _argument(spec, value), spec.target), value))
    return found


def _argument(spec: OutputSpec, value: Any) -> Any:
    """The signature's name for a value."""
    if not isinstance(value, fx.Node):
        return ConstantArgument(name="", value=value)
    return type(spec.arg)(name=value.name) if isinstance(spec.arg, (TensorArgument, SymIntArgument)) else spec.arg


def _program(
    program: ExportedProgram, graph: fx.Graph, outputs: list[OutputSpec], tensors: Mapping[str, Tensor]
) -> ExportedProgram:
    """The program with another graph, other results and other tensors."""
    state = _state(program, tensors)
    constants = {name: tensors.get(name, value) for name, value in program.constants.items()}
    return ExportedProgram(
        root=torch.nn.Module(),
        graph=graph,
        graph_signature=ExportGraphSignature(list(program.graph_signature.input_specs), outputs),
        state_dict=state,
        range_constraints=copy.copy(program.range_constraints),
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants=constants,
        verifiers=program.verifiers,
    )


def _state(program: ExportedProgram, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The new tensors under the names of the old ones. A strict program also keeps names that its graph does not read:
    another name of a tied tensor follows it, and a tensor by itself, as a counter of batches, stays as it is."""
    kept = program.state_dict
    renamed = {id(kept[name]): tensor for name, tensor in tensors.items() if name in kept}
    return {name: tensors.get(name, renamed.get(id(old), old)) for name, old in kept.items()}
