"""Whether the metadata of a graph are there and true: everything that is found is read off them."""

from __future__ import annotations

from typing import Any

from torch import SymInt, Tensor, fx
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxprune.calls import attribute, concrete
from fxprune.errors import CaptureError, describe, shape_of


def require_metadata(gm: fx.GraphModule) -> None:
    """Raise CaptureError where a graph is no graph of ATen calls, or its metadata are missing or plainly stale."""
    for node in gm.graph.nodes:
        if node.op in ("call_module", "call_method"):
            raise CaptureError(
                f"{describe(node)} is no ATen call: Lift has run, or a pass has put it in. Analyse the graph before, "
                "or call fxprune.capture anew"
            )
        if node.op == "call_function" and "val" not in node.meta:
            raise CaptureError(
                f"{describe(node)} has no meta['val'], which a pass that adds a call must set: "
                "copy it from a like node, or call fxprune.capture anew"
            )
        if node.op == "get_attr":
            _require_shape(gm, node)


def _require_shape(gm: fx.GraphModule, node: fx.Node) -> None:
    """Raise CaptureError where a tensor is not of the shape that the graph records for it."""
    tensor, recorded = attribute(gm, str(node.target)), shape_of(node)
    if isinstance(tensor, Tensor) and recorded is not None and tuple(tensor.shape) != recorded:
        raise CaptureError(
            f"`{node.target}` has the shape {tuple(tensor.shape)}, and the graph records {recorded}: it was replaced "
            "after the capture; call fxprune.capture anew"
        )


def refuse_stale(gm: fx.GraphModule, cause: Exception) -> None:
    """Raise CaptureError from `cause` where a call does not give what its meta['val'] says; it names the first one."""
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if not isinstance(mode, FakeTensorMode) or mode.shape_env is None:
        return
    with mode, mode.shape_env.suppress_guards():
        stale = next((node for node in gm.graph.nodes if _is_stale(node)), None)
    if stale is not None:
        raise CaptureError(
            f"meta['val'] of {describe(stale)} is stale, for it is not what the call gives: a pass that changes a call "
            "must set it anew, or call fxprune.capture anew"
        ) from cause


def _is_stale(node: fx.Node) -> bool:
    """Whether a call gives other shapes, on the recorded values of its arguments, than are recorded for it."""
    if not isinstance(node.target, OpOverload):
        return False
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: source.meta["val"])
    try:
        found = node.target(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return True
    return _sizes(found) != _sizes(node.meta["val"])


def _sizes(value: Any) -> list[list[int]]:
    """The shapes in a value, on the example."""
    found = (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor | SymInt))
    return [[concrete(size) for size in (leaf.shape if isinstance(leaf, Tensor) else [leaf])] for leaf in found]
