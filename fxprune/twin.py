"""Plan.apply: a copy of the user's own module, shrunk by a plan and checked against the shrunk graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.calls import bound_arguments, device_of
from fxprune.capture import capture, capture_info, last_capture
from fxprune.codegen.forward import ReadableCodeGen
from fxprune.codegen.tree import named_tensors
from fxprune.errors import FxpruneError, PlanError, source_line, user_line
from fxprune.passes.base import DENSE, state
from fxprune.passes.shrink import shrink
from fxprune.passes.verify import in_float64
from fxprune.types import Plan

aten = torch.ops.aten
_TOLERANCE = 1e-8  # float64; a baked size changes whole channels
_OWN_TOLERANCE = 1e-3  # float32 and less
Attributes = Callable[[Any], dict[str, Any]]

# The attributes of each class that repeat the shape of its tensors; groups are set before.
_ATTRIBUTES: dict[type[nn.Module], Attributes] = {
    nn.Linear: lambda m: {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]},
    nn.modules.conv._ConvNd: lambda m: _channels(m),
    nn.modules.batchnorm._NormBase: lambda m: {"num_features": _width(m, ("weight", "running_mean"), m.num_features)},
    nn.LayerNorm: lambda m: {"normalized_shape": m.normalized_shape if m.weight is None else tuple(m.weight.shape)},
    nn.RMSNorm: lambda m: {"normalized_shape": m.normalized_shape if m.weight is None else tuple(m.weight.shape)},
    nn.GroupNorm: lambda m: {"num_channels": _width(m, ("weight",), m.num_channels)},
    nn.Embedding: lambda m: {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]},
    nn.PReLU: lambda m: {"num_parameters": m.weight.numel()},
    nn.RNNBase: lambda m: _recurrent(m),
    nn.RNNCellBase: lambda m: {"input_size": m.weight_ih.shape[1], "hidden_size": m.weight_hh.shape[1]},
}

# The arguments of calls that a module keeps as attributes and no tensor's shape tells.
_CALLS: dict[Any, tuple[str, ...]] = {
    **{getattr(aten, f"conv{n}d").default: ("groups",) for n in (1, 2, 3)},
    **{getattr(aten, f"conv{n}d").padding: ("groups",) for n in (1, 2, 3)},
    aten.conv_transpose1d.default: ("groups",),
    aten.conv_transpose2d.input: ("groups",),
    aten.conv_transpose3d.input: ("groups",),
    aten.group_norm.default: ("num_groups",),
    aten.layer_norm.default: ("normalized_shape",),
}


def apply_plan(plan: Plan, model: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None = None) -> nn.Module:
    """A copy of `model`, of the same class, with what `plan` removes taken out. `model` is not modified.

    Training flags, `requires_grad`, hooks and everything else that the forward does in training stay as they are.

    example_inputs: to trace `model` with, where it was not captured in this process and the plan does not say.

    Raises PlanError where the plan does not fit, or where the copy does not compute what the shrunk graph computes, in
    evaluation and float64: its forward then has a size written in that the plan changes.
    """
    gm = _captured(plan, model, example_inputs)
    small = shrink(gm, plan)
    twin = copy.deepcopy(model)
    _replace_tensors(twin, named_tensors(small))
    _set_attributes(twin, small, plan.heads)
    _check(twin, small)
    return twin


def _captured(plan: Plan, model: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None) -> fx.GraphModule:
    """The model's graph: traced with the inputs that are given, else the last one, else traced as the plan says."""
    if example_inputs is not None:
        return capture(model, example_inputs)
    gm = last_capture(model)
    if gm is not None and _is_current(gm, model):
        return gm
    if gm is not None:
        info = capture_info(gm)
        return capture(model, info.args, info.kwargs)
    if not plan.inputs:
        raise PlanError(
            "the model was never captured, and the plan names no inputs: call plan.apply(model, example_inputs)"
        )
    device = device_of(model)
    return capture(model, tuple(_example(shape, dtype, device) for shape, dtype in plan.inputs))


def _is_current(gm: fx.GraphModule, model: nn.Module) -> bool:
    """Whether no pass has rewritten the graph, and it still holds the model's own tensors."""
    tensors = named_tensors(gm)
    current = model.state_dict(keep_vars=True)
    shared = (name in tensors and tensors[name].data_ptr() == tensor.data_ptr() for name, tensor in current.items())
    rewritten = DENSE in state(gm) or isinstance(gm.graph._codegen, ReadableCodeGen)
    return not rewritten and all(shared)


def _example(shape: tuple[int, ...], dtype: str, device: torch.device) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype.removeprefix("torch."))
    if kind.is_floating_point:
        return torch.randn(shape, dtype=kind, device=device)
    return torch.zeros(shape, dtype=kind, device=device)


def _replace_tensors(twin: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts clones of the shrunk tensors in place of the twin's; every alias of a tied one becomes the same clone."""
    made: dict[int, Any] = {}
    for path, module in twin.named_modules(remove_duplicate=False):
        for slots in (module._parameters, module._buffers):
            for name, old in slots.items():
                new = tensors.get(f"{path}.{name}".lstrip("."))
                if old is None or new is None:
                    continue
                if id(old) not in made:
                    fresh = new.detach().clone()
                    made[id(old)] = nn.Parameter(fresh, old.requires_grad) if isinstance(old, nn.Parameter) else fresh
                    made[id(made[id(old)])] = made[id(old)]  # a module with two names is met twice
                slots[name] = made[id(old)]
        for name, old in vars(module).items():  # a tensor that is registered as nothing
            new = tensors.get(f"{path}.{name}".lstrip("."))
            if isinstance(old, Tensor) and new is not None and new.shape != old.shape:
                setattr(module, name, new.detach().clone())


def _set_attributes(twin: nn.Module, small: fx.GraphModule, heads: bool) -> None:
    """Makes sizes that modules keep as attributes true again."""
    modules = dict(twin.named_modules(remove_duplicate=False))
    for node in small.graph.nodes:
        for name in _CALLS.get(node.target, ()):
            module = modules.get(_owner(node))
            if module is not None and hasattr(module, name):
                value = bound_arguments(node)[name]
                setattr(module, name, tuple(value) if isinstance(value, (list, tuple)) else value)
    for module in twin.modules():
        for kind, attributes in _ATTRIBUTES.items():
            if isinstance(module, kind):
                for name, value in attributes(module).items():
                    setattr(module, name, value)
        if isinstance(module, nn.MultiheadAttention):
            _set_attention(module, heads)


def _owner(node: fx.Node) -> str:
    """The path of the module behind a call: the innermost one whose forward makes it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).partition("@")[0] if stack else ""


def _width(module: nn.Module, names: tuple[str, ...], otherwise: int) -> int:
    """The length of the first of the named tensors that the module has."""
    return next((tensor.shape[0] for name in names if (tensor := getattr(module, name)) is not None), otherwise)


def _channels(module: Any) -> dict[str, int]:
    """The channels of a convolution, from its filters and groups."""
    first, second = module.weight.shape[:2]
    if module.transposed:
        return {"in_channels": first, "out_channels": second * module.groups}
    return {"out_channels": first, "in_channels": second * module.groups}


def _recurrent(module: Any) -> dict[str, Any]:
    """The sizes of an nn.LSTM, nn.GRU or nn.RNN, and its list of weights."""
    weights = [getattr(module, name) for name in module._flat_weights_names]
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    sizes = {"input_size": weights[0].shape[1], "hidden_size": weights[0].shape[0] // gates}
    return {**sizes, "proj_size": weights[1].shape[1] if module.proj_size else 0, "_flat_weights": weights}


def _set_attention(module: nn.MultiheadAttention, heads: bool) -> None:
    """The sizes of attention: it knows one width for what it reads, for all heads together and for its result."""
    width = module.out_proj.weight.shape[0]
    inner = module.out_proj.weight.shape[1]
    module.num_heads, module.head_dim = (
        (inner // module.head_dim, module.head_dim) if heads else (module.num_heads, inner // module.num_heads)
    )
    module.embed_dim = width
    if module._qkv_same_embed_dim:
        module.kdim = module.vdim = width
    else:
        module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]


def _check(twin: nn.Module, small: fx.GraphModule) -> None:
    """Compares the twin with the shrunk graph. Raises PlanError with the reason and the user's line.

    In float64, or in the network's own type where its forward names one.
    """
    info = capture_info(small)
    given = (info.args, dict(info.kwargs))
    tolerance = _TOLERANCE
    try:
        found = pytree.tree_leaves(_run(copy.deepcopy(twin).double().eval(), pytree.tree_map(_doubled, given)))
        wanted = pytree.tree_leaves(_run(in_float64(small), pytree.tree_map(_doubled, given)))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):  # in its own type, or not at all
        tolerance = _OWN_TOLERANCE
        found, wanted = _in_own_type(twin, small, given)
    if len(found) != len(wanted) or not all(_agree(a, b, tolerance) for a, b in zip(found, wanted, strict=True)):
        raise PlanError(
            f"{type(twin).__name__} cannot follow the plan: its copy computes something else than the shrunk graph, "
            f"so its forward depends on a size that the plan changes{_first_difference(twin, small)}"
        )


def _in_own_type(twin: nn.Module, small: fx.GraphModule, given: Any) -> tuple[list[Any], list[Any]]:
    """What both return. Raises PlanError where the twin does not run."""
    try:
        found = pytree.tree_leaves(_run(copy.deepcopy(twin).eval(), given))
    except Exception as error:
        raise PlanError(
            f"{type(twin).__name__} cannot follow the plan: a size that the plan changes is written into its "
            f"forward{user_line(error)}. {type(error).__name__}: {error}"
        ) from error
    return found, pytree.tree_leaves(_run(small, given))


def _run(module: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    args, kwargs = copy.deepcopy(inputs)  # a forward may write into its inputs
    with torch.no_grad():
        return module(*args, **kwargs)


def _doubled(leaf: Any) -> Any:
    return leaf.detach().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _agree(found: Any, wanted: Any, tolerance: float = _TOLERANCE) -> bool:
    if not isinstance(found, Tensor) or not isinstance(wanted, Tensor):
        return bool(found == wanted)
    if found.shape != wanted.shape:
        return False
    scale = float(wanted.abs().max()) if wanted.numel() else 1.0
    return torch.allclose(found, wanted, rtol=0.0, atol=tolerance * max(scale, 1e-300), equal_nan=True)


def _graph_in_float64(gm: fx.GraphModule) -> fx.GraphModule:
    widened = in_float64(gm)
    assert isinstance(widened, fx.GraphModule)
    return widened


class _Values(fx.Interpreter):
    """Runs a graph and keeps the value of every node."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, kept."""
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


def _first_difference(twin: nn.Module, small: fx.GraphModule) -> str:
    """The user's line at which the twin and the shrunk graph part, as ` at file:line: code`; "" where it is unknown."""
    info = capture_info(small)
    try:
        traced = capture(copy.deepcopy(twin), info.args, info.kwargs)
    except FxpruneError:
        return ""
    found, wanted = (_Values(_graph_in_float64(gm)) for gm in (traced, small))
    inputs = pytree.tree_map(_doubled, pytree.tree_leaves((info.args, dict(info.kwargs))))
    with torch.no_grad():
        for runner in (found, wanted):
            runner.run(*inputs, enable_io_processing=False)
    for node in small.graph.nodes:
        if node.op == "call_function" and node.name in found.values:
            pair = pytree.tree_leaves(found.values[node.name]), pytree.tree_leaves(wanted.values[node.name])
            if len(pair[0]) != len(pair[1]) or not all(map(_agree, *pair)):
                line = source_line(node)
                return f" at {line}" if line else ""
    return ""
