"""What no capture can make prunable: weights that are quantized already, and parameters that are inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fxprune.calls import bound_arguments
from fxprune.errors import CaptureError, describe

_QUANTIZED = {"quantized", "quantized_decomposed", "torchao"}  # namespaces of operators
_QUANTIZED_MODULES = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")
_OBSERVER = "activation_post_process"  # how prepare_pt2e calls the modules that it puts in
_PRUNE_FIRST = (
    "prune the network in floating point first, and quantize what comes out: fxprune.prune(...).program(), or "
    "fxprune.prune_exported(...), then prepare_pt2e and convert_pt2e"
)
_CAPTURE_INSTEAD = (
    "nothing of an input can leave. Capture the nn.Module or the ExportedProgram itself, not program.graph_module nor "
    "the graph of aot_export: there, parameters are inputs"
)


def refuse_quantized_weights(model: nn.Module) -> None:
    """Raise CaptureError where a parameter or buffer is a tensor subclass around others, as `quantize_` makes them, or
    a module one of torch.ao."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith(_QUANTIZED_MODULES):
            raise CaptureError(f"`{name}` is quantized already ({type(module).__name__}): {_PRUNE_FIRST}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_traceable_wrapper_subclass(tensor):
            raise CaptureError(f"`{name}` is quantized already ({type(tensor).__name__}): {_PRUNE_FIRST}")


def refuse_missing_parameters(model: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise CaptureError where a graph without a tensor of its own wants more inputs than there are."""
    if _holds_tensors(model):
        return
    wanted = [node for node in model.graph.nodes if node.op == "placeholder" and not node.args]
    given = max(len(args) + len(kwargs), len(pytree.tree_leaves((args, kwargs))))
    if len(wanted) > given:
        raise CaptureError(
            f"this {type(model).__name__} holds no parameters and takes {len(wanted)} inputs, where {given} are given: "
            f"its parameters are placeholders, such as `{wanted[0].name}`, and {_CAPTURE_INSTEAD}"
        )


def refuse_graph(gm: fx.GraphModule) -> None:
    """Raise CaptureError where ATen calls quantize, are prepared for it, or have their parameters as placeholders."""
    holds_tensors = _holds_tensors(gm)
    for node in gm.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith(_OBSERVER):
            raise CaptureError(f"this network is prepared for quantization: {describe(node)}; {_PRUNE_FIRST}")
        if not isinstance(node.target, OpOverload):
            continue
        if node.target.namespace in _QUANTIZED or "fake_quant" in node.target._schema.name:
            raise CaptureError(f"this network is quantized already: {describe(node)}; {_PRUNE_FIRST}")
        weight = None if holds_tensors else _weight(node)
        if weight is not None:
            raise CaptureError(
                f"{describe(node)} takes its weight from the input `{weight.name}`: the parameters of this graph are "
                f"placeholders, and {_CAPTURE_INSTEAD}"
            )


def _holds_tensors(model: nn.Module) -> bool:
    return next(model.parameters(), None) is not None or next(model.buffers(), None) is not None


def _weight(node: fx.Node) -> fx.Node | None:
    """The input that a call takes as its weight, possibly transposed, and as nothing else; None where it takes none."""
    arguments = bound_arguments(node)
    given = arguments.pop("mat2" if node.target is torch.ops.aten.addmm.default else "weight", None)
    weight = _root(given)
    others = {_root(other) for other in arguments.values()}
    return weight if weight is not None and weight.op == "placeholder" and weight not in others else None


def _root(value: Any) -> fx.Node | None:
    """What a value is made of by calls that read one tensor each."""
    while isinstance(value, fx.Node) and value.op == "call_function" and len(value.all_input_nodes) == 1:
        value = value.all_input_nodes[0]
    return value if isinstance(value, fx.Node) else None
