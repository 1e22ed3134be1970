"""Capture: a module, a symbolic_trace GraphModule or an exported program becomes one ATen graph."""

from __future__ import annotations

import copy
import inspect
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError, InputError, describe, user_line

META = "fxprune"  # the key in GraphModule.meta under which fxprune keeps what its stages hand on


@dataclass(frozen=True)
class Capture:
    """What is known of a captured graph besides the graph itself.

    args, kwargs: the example inputs that it was captured with.
    dynamic_batch: whether dimension 0 of the inputs may change.
    names: names of parameters and buffers in the order of the original's state_dict.
    notes: what the capture had to give up, in words, for the report.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    dynamic_batch: bool
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


_captured: weakref.WeakKeyDictionary[nn.Module, fx.GraphModule] = weakref.WeakKeyDictionary()


def last_capture(model: nn.Module) -> fx.GraphModule | None:
    """The graph that `model` was last captured to in this process, while both live."""
    return _captured.get(model)


def capture_info(gm: fx.GraphModule) -> Capture:
    """What `capture` noted on `gm`. Raises CaptureError when `gm` did not come from `capture`."""
    info = getattr(gm, "meta", {}).get(META, {}).get("capture")
    if not isinstance(info, Capture):
        raise CaptureError(
            f"this {type(gm).__name__} was not made by fxprune.capture: call fxprune.capture(model, inputs) first"
        )
    return info


def capture(
    model: nn.Module | fx.GraphModule | ExportedProgram,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> fx.GraphModule:
    """Trace `model` to an ATen GraphModule, in evaluation mode, with parameters as named attributes.

    model: taken as it is; never modified. A GraphModule that `capture` made is returned as it is.
    example_inputs: a tuple of tensors; a lone tensor is taken as one. An example batch of 1 is doubled, for 1 would
        specialise. An ExportedProgram brings its own.
    dynamic_shapes: as in torch.export.export; None makes dimension 0 of every tensor input dynamic where the model
        allows it.

    Raises CaptureError where the model cannot be traced and InputError where the inputs do not fit it.
    """
    if isinstance(model, ExportedProgram):
        return _from_program(model)
    if isinstance(model, fx.GraphModule) and _is_captured(model):
        return model
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"cannot capture a {type(model).__name__}: give an nn.Module, GraphModule or ExportedProgram"
        )
    if example_inputs is None:
        raise InputError("example_inputs is needed to trace a module: give a tuple of tensors")
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    kwargs = dict(example_kwargs or {})
    with evaluation(model):
        _check_inputs(model, args, kwargs)
        program, notes = _export(model, args, kwargs, dynamic_shapes)
    gm = _unlifted(program, tuple(model.state_dict()), args, kwargs, notes)
    _captured[model] = gm
    return gm


def _is_captured(gm: fx.GraphModule) -> bool:
    """Whether this is an ATen graph that `capture` made; one that has been lifted since is a module like any other."""
    return "capture" in gm.meta.get(META, {}) and isinstance(gm.graph._codegen, _PyTreeCodeGen)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The module in evaluation mode inside, every flag as it was after."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in flags:
            module.training = training


def _check_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the model once on the example: a mistake is told in its own words, before any tracing."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors:
        raise InputError("example_inputs holds no tensor")
    for index, tensor in enumerate(tensors):
        if tensor.ndim and not len(tensor):
            raise InputError(f"example input {index} of shape {tuple(tensor.shape)} is empty: give one sample or more")
        if tensor.is_meta:
            raise InputError(f"example input {index} is on the meta device: it has no values to run the model on")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"example input {index} of shape {tuple(tensor.shape)} holds NaN or infinity")
    weights = {(p.device, p.dtype) for p in model.parameters() if p.is_floating_point()}
    buffers = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
    try:
        with torch.no_grad():
            model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    except Exception as error:
        given = ", ".join(f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in tensors)
        have = ", ".join(f"{dtype} on {device}" for device, dtype in sorted(weights, key=str)) or "no parameters"
        raise InputError(
            f"the model does not run on the example inputs ({given}); its parameters are {have}. "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        with torch.no_grad():
            for name, tensor in model.named_buffers():
                tensor.copy_(buffers[name])


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Export with a dynamic batch, or, where the model bakes the batch in, with a static one and a note."""
    if dynamic_shapes is not None:
        return _try_export(model, args, kwargs, dynamic_shapes), ()
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    spec = pytree.tree_map(_batch_dim, dict(bound))
    batched_args, batched_kwargs = pytree.tree_map(double_batch_of_one, (args, kwargs))
    try:
        program = _try_export(model, batched_args, batched_kwargs, spec)
    except CaptureError as dynamic_failure:
        try:
            program = _try_export(model, args, kwargs, None)
        except CaptureError:
            raise dynamic_failure from None
    if _has_dynamic_batch(program.graph):
        return program, ()
    if batched_args is not args:
        program = _try_export(model, args, kwargs, None)
    return program, ("the model bakes its batch size in: the batch stays static",)


def _has_dynamic_batch(graph: fx.Graph) -> bool:
    """Whether dimension 0 of some input is a symbol that was not specialised."""
    values = [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]
    leading = [value.shape[0] for value in values if isinstance(value, Tensor) and value.ndim]
    return any(isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None for size in leading)


def _batch_dim(leaf: Any) -> dict[int, Any] | None:
    """Dimension 0 of a tensor may change; nothing else."""
    return {0: Dim.AUTO} if isinstance(leaf, Tensor) and leaf.ndim > 0 else None


def double_batch_of_one(leaf: Any) -> Any:
    """Twice the sample where a tensor holds one: torch.export takes a size of 1 for a constant."""
    return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == 1 else leaf


def _try_export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], spec: Any) -> ExportedProgram:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.export warns about its own internals
            return torch.export.export(model, args, kwargs, dynamic_shapes=spec, strict=False)
    except Exception as error:
        reason = str(error).strip().split("\n\n")[0]
        where = user_line(error)
        raise CaptureError(
            f"torch.export cannot trace {type(model).__name__}{where}: {type(error).__name__}: {reason}\n"
            "Control flow that depends on the values of tensors cannot be traced: use torch.where or torch.cond, or "
            "capture the part of the model without it."
        ) from error


def _from_program(program: ExportedProgram) -> fx.GraphModule:
    if program.example_inputs is None:
        raise InputError("this ExportedProgram carries no example inputs: export it again, or set .example_inputs")
    args, kwargs = program.example_inputs
    return _unlifted(program, tuple(program.state_dict), args, kwargs, ())


def _unlifted(
    program: ExportedProgram, names: tuple[str, ...], args: tuple[Any, ...], kwargs: Any, notes: tuple[str, ...]
) -> fx.GraphModule:
    """The program as a GraphModule with tensors as named attributes, and what is known of it in its meta."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gm = program.module(check_guards=False)
    except SyntaxError as error:
        raise CaptureError(
            f"a submodule or parameter has a name that cannot be written as an attribute ({error.text}): rename it"
        ) from error
    assert isinstance(gm, fx.GraphModule)
    _refuse_subgraphs(gm)
    for node in list(gm.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            gm.graph.erase_node(node)
    _functionalize(gm.graph)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    dynamic = _has_dynamic_batch(gm.graph)
    gm.meta[META] = {"capture": Capture(args, dict(kwargs or {}), dynamic, names, notes)}
    return gm


def _refuse_subgraphs(gm: fx.GraphModule) -> None:
    """Raise CaptureError where the graph calls another graph: the analysis would not see inside."""
    for node in gm.graph.nodes:
        if node.op == "get_attr" and isinstance(getattr(gm, str(node.target).split(".")[0]), fx.GraphModule):
            calls = ", ".join(describe(user) for user in node.users)
            raise CaptureError(
                f"the model switches autocast or gradients, or branches, inside its forward ({calls}): "
                "take the context manager or the branch out of it"
            )


def _functionalize(graph: fx.Graph) -> None:
    """Replaces `relu_(x)` by `relu(x)`, and later reads of x by reads of the result; `meta["inplace"]` remembers it.

    A call that writes into memory that other values share is left alone: analysis refuses it there.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        functional = _functional_variant(node)
        if functional is None:
            continue
        written = node.args[0]
        if not isinstance(written, fx.Node) or not _alone(written):
            continue
        node.target = functional
        node.meta["inplace"] = True
        later = {user for user in written.users if order[user] > order[node]}
        written.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _functional_variant(node: fx.Node) -> OpOverload | None:
    target = node.target
    if not isinstance(target, OpOverload) or not target._schema.is_mutable or target.namespace != "aten":
        return None
    packet = getattr(torch.ops.aten, target._schema.name.split("::")[1].removesuffix("_"), None)
    overload = getattr(packet, target._overloadname, None) if packet is not None else None
    return overload if isinstance(overload, OpOverload) and not overload._schema.is_mutable else None


def _alone(node: fx.Node) -> bool:
    """Whether no other value of the graph shares memory with this one."""
    if node.op == "get_attr" or any(_is_view(user) for user in node.users):
        return False
    while _is_view(node):
        node = node.all_input_nodes[0]
        if len(node.users) > 1 or node.op == "get_attr":
            return False
    return True


def _is_view(node: fx.Node) -> bool:
    """Whether the node's result shares memory with an argument without writing into it."""
    if not isinstance(node.target, OpOverload):
        return False
    returned = [result.alias_info for result in node.target._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)
