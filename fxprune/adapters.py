"""Passes of fxprune in the pipelines of other compilers: plain functions of the signatures that these expect.

Neither compiler is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.calls import concrete_shape, source_of
from fxprune.capture import META, Capture, HandedOn
from fxprune.codegen.tree import named_tensors
from fxprune.errors import CaptureError, RewriteError, describe


def executorch_pass(pass_: PassBase) -> Callable[[fx.GraphModule], PassResult]:
    """A pass as ExecuTorch takes it: `Callable[[GraphModule], Optional[PassResult]]`.

    For `EdgeProgramManager.transform([...])` and the `transform_passes` of `to_edge_transform_and_lower`, whose graphs
    have their parameters as inputs: there only passes on calls fit, such as Tidy. Any pass fits the graph of
    `program.module()`. Raises CaptureError where a pass needs the parameters and the graph has none.
    """

    def run(graph_module: fx.GraphModule) -> PassResult:
        _adopt(graph_module, pass_)
        try:
            result = pass_(graph_module)
        except CaptureError as error:
            if named_tensors(graph_module):
                raise
            raise CaptureError(
                f"{type(pass_).__name__} needs the parameters, which are inputs of this graph: prune the program "
                "before, with fxprune.prune_exported(program, ...) or fxprune.shrink(program, plan)"
            ) from error
        if result is None:
            raise RewriteError(f"{type(pass_).__name__} returned no PassResult")
        return result

    run.__name__ = type(pass_).__name__  # pass managers show it
    return run


def tensorrt_pass(pass_: PassBase) -> Callable[[fx.GraphModule, Any], fx.GraphModule]:
    """A pass as Torch-TensorRT takes it: `Callable[[GraphModule, CompilationSettings], GraphModule]`.

    For `torch_tensorrt.dynamo.lowering.passes._aten_lowering_pass`, whose graph is that of `program.module()`. The
    settings are not read. The graph is linted and recompiled. Raises CaptureError as `executorch_pass` does.
    """
    run = executorch_pass(pass_)

    def lower(gm: fx.GraphModule, settings: Any) -> fx.GraphModule:
        lowered: fx.GraphModule = run(gm).graph_module
        lowered.graph.lint()
        lowered.recompile()
        return lowered

    lower.__name__ = type(pass_).__name__
    return lower


def _adopt(gm: fx.GraphModule, pass_: PassBase) -> None:
    """Notes on a graph that `capture` did not make what its passes need to know.

    Raises CaptureError where calls write in place.
    """
    if META in gm.meta or not named_tensors(gm):
        return
    written = next((node for node in gm.graph.nodes if _writes(node)), None)
    if written is not None:
        raise CaptureError(
            f"{type(pass_).__name__} needs plain calls, and {describe(written)} writes in place: run it on "
            "fxprune.capture(program), where none does"
        )
    values = [node.meta.get("val") for node in gm.graph.nodes if node.op == "placeholder"]
    batch = [value.shape[0] for value in values if isinstance(value, Tensor) and value.ndim]
    dynamic = any(isinstance(size, torch.SymInt) for size in batch)
    args = tuple(_example(node) for node in gm.graph.nodes if node.op == "placeholder")
    gm.meta[META] = HandedOn(capture=Capture(args, {}, dynamic, tuple(gm.state_dict())))


def _writes(node: fx.Node) -> bool:
    """Whether a call writes into a tensor, other than the last value of a buffer or input into it."""
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return False
    return node.target is not torch.ops.aten.copy_.default or source_of(node).op not in {"get_attr", "placeholder"}


def _example(node: fx.Node) -> Any:
    """An input of the shape and dtype that the graph records."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return value
    shape = concrete_shape(node)
    make = torch.randn if value.is_floating_point() else torch.zeros
    return make(shape, dtype=value.dtype, device=value.device)
