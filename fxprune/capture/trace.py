"""Tracing with torch.export, and what is done to its graph before anybody else sees it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.capture.example import attributes_kept, double_batch_of_one, evaluation, run_example
from fxprune.capture.functional import functionalize
from fxprune.capture.inline import inline_contexts
from fxprune.capture.record import META, Capture, HandedOn, is_captured, remember
from fxprune.capture.refuse import refuse_graph, refuse_missing_parameters, refuse_quantized_weights
from fxprune.errors import CaptureError, InputError, user_line


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

    In the graph nothing is written in place: a write becomes the call that gives the new value, also through a view;
    buffers and inputs that the forward writes get their new values in `copy_` calls at the end. Dataclasses among the
    results are registered with torch.export.

    Raises CaptureError where the model cannot be traced, is quantized already, or has its parameters as inputs, and
    InputError where the inputs do not fit it.
    """
    if isinstance(model, ExportedProgram):
        return _from_program(model)
    if isinstance(model, fx.GraphModule):
        refuse_graph(model)
        if is_captured(model):
            return model
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"cannot capture a {type(model).__name__}: give an nn.Module, GraphModule or ExportedProgram"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("TorchScript is not captured: give the nn.Module that it was made from")
    if example_inputs is None:
        raise InputError("example_inputs is needed to trace a module: give a tuple of tensors")
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    kwargs = dict(example_kwargs or {})
    _check_names(model)
    refuse_quantized_weights(model)
    if isinstance(model, fx.GraphModule):
        refuse_missing_parameters(model, args, kwargs)
    with evaluation(model), attributes_kept(model), _without_fused_attention():
        run_example(model, args, kwargs)
        program, notes = _export(model, args, kwargs, dynamic_shapes)
    gm = _unlifted(program, tuple(model.state_dict()), args, kwargs, notes)
    remember(model, gm)
    return gm


def _check_names(model: nn.Module) -> None:
    """Raise CaptureError where something of the model is called as a GraphModule calls something of its own."""
    taken = {*(set(dir(fx.GraphModule)) - set(dir(nn.Module))), "meta"}
    for slots in (model._modules, model._parameters, model._buffers):
        for name in taken & set(slots):
            raise CaptureError(f"`self.{name}` has a name that a GraphModule needs for itself: rename it")


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """nn.MultiheadAttention and nn.TransformerEncoder in their plain form, not as one fused operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


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
            "Control flow that depends on the values of tensors cannot be traced: use torch.where, or "
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
    _restore_counters(gm, program)
    inline_contexts(gm)
    for node in list(gm.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            gm.graph.erase_node(node)
    refuse_graph(gm)
    functionalize(gm)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    dynamic = _has_dynamic_batch(gm.graph)
    gm.meta[META] = HandedOn(capture=Capture(args, dict(kwargs or {}), dynamic, names, notes))
    return gm


def _restore_counters(gm: fx.GraphModule, program: ExportedProgram) -> None:
    """A strict program has the counters of BatchNorm, which its graph does not read, in its state alone."""
    modules = dict(gm.named_modules())
    for name, tensor in program.state_dict.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked" and path in modules and not hasattr(modules[path], leaf):
            modules[path].register_buffer(leaf, tensor)
