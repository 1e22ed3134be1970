"""Which calls of an ATen graph may become modules again, under the original's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from fxprune.calls import bound_arguments
from fxprune.codegen.modules import FREE, OWNING, free_module, recurrent_module

aten = torch.ops.aten
_OWNED = {"weight", "bias", "running_mean", "running_var"}  # the arguments that a module brings; others are its input


class Candidate(NamedTuple):
    """A call that may become a module: its path, the module, and what the module is called on."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]


def candidate(node: fx.Node, tensors: Mapping[str, Tensor]) -> Candidate | None:
    """The module that makes the call of `node`; None where none does. `tensors`: all of the network, by name."""
    return _owning(node, tensors) or _recurrent(node, tensors) or _free(node, tensors)


def stack_top(node: fx.Node) -> tuple[str, str]:
    """Path and class of the innermost module whose forward made the call; a second call's mark `@1` is left out."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    return re.sub(r"@\d+", "", path), kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def stack_class(node: fx.Node) -> type[nn.Module] | None:
    """The class of the innermost module when it is one of torch.nn."""
    kind = stack_top(node)[1]
    found = getattr(nn, kind.rpartition(".")[2], None) if kind.startswith("torch.nn.modules.") else None
    return found if isinstance(found, type) else None


def _owning(node: fx.Node, tensors: Mapping[str, Tensor]) -> Candidate | None:
    """The module whose own tensors, and no others, are the arguments of the call."""
    if node.target not in OWNING:
        return None
    assert isinstance(node.target, OpOverload)
    arguments = bound_arguments(node)
    owned, inputs, weight = {}, [], ""
    for name, value in arguments.items():
        if name in _OWNED and isinstance(value, fx.Node) and value.op == "get_attr" and str(value.target) in tensors:
            owned[name] = arguments[name] = tensors[str(value.target)]
            weight = weight or str(value.target)
        elif isinstance(value, fx.Node):
            inputs.append(value)
    if not owned or len(inputs) != 1:
        return None
    for path in dict.fromkeys((stack_top(node)[0], weight.rpartition(".")[0])):
        if path and all(tensors.get(f"{path}.{name}") is tensor for name, tensor in owned.items()):
            with torch.device("meta"):
                module = OWNING[node.target](arguments)
            if module is not None and _has_slots_for(module, path, owned, tensors):
                return Candidate(path, module, (inputs[0],))
    return None


def _has_slots_for(module: nn.Module, path: str, owned: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    """Whether the module has just the tensors that the original has at `path`, as parameters and as buffers."""
    there = {name[len(path) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{path}.")}
    slots = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return (
        set(slots) == set(there)
        and set(owned) == set(slots) - {"num_batches_tracked"}
        and all(isinstance(there[name], nn.Parameter) is isinstance(slots[name], nn.Parameter) for name in slots)
        and all(there[name].shape == slots[name].shape for name in slots)
    )


def _free(node: fx.Node, tensors: Mapping[str, Tensor]) -> Candidate | None:
    """The parameter-free module of torch.nn whose forward made the call."""
    kind, path = stack_class(node), stack_top(node)[0]
    if kind is None or not path or not isinstance(node.target, OpOverload) or node.target not in FREE:
        return None
    value = node.args[0]
    if not isinstance(value, fx.Node) or any(name.startswith(f"{path}.") for name in tensors):
        return None
    with torch.device("meta"):
        module = free_module(node.target, kind, {**bound_arguments(node), "inplace": _may_overwrite(node, value)})
    return Candidate(path, module, (value,)) if module is not None else None


def _may_overwrite(node: fx.Node, value: fx.Node) -> bool:
    """Whether the original wrote the result over its input and nobody else can see that it does."""
    fresh = value.op == "call_module" or (value.op == "call_function" and not _is_view(value))
    return bool(node.meta.get("inplace")) and len(value.users) == 1 and fresh


def _is_view(node: fx.Node) -> bool:
    """Whether the value shares memory with another one."""
    target = node.target
    return not isinstance(target, OpOverload) or any(result.alias_info for result in target._schema.returns)


def _recurrent(node: fx.Node, tensors: Mapping[str, Tensor]) -> Candidate | None:
    """nn.LSTM, nn.GRU or nn.RNN with all its weights."""
    arguments = bound_arguments(node) if isinstance(node.target, OpOverload) else {}
    weights = [item for item in arguments.get("params") or () if isinstance(item, fx.Node) and item.op == "get_attr"]
    if not weights or len(weights) != len(arguments["params"]) or "batch_sizes" in arguments:
        return None
    paths, _, names = zip(*(str(item.target).rpartition(".") for item in weights), strict=True)
    there = [name for name in tensors if name.startswith(f"{paths[0]}.")]
    if len(set(paths)) > 1 or not paths[0] or sorted(there) != sorted(str(item.target) for item in weights):
        return None
    with torch.device("meta"):
        module = recurrent_module(node.target, names, [tensors[str(item.target)] for item in weights], arguments)
    if module is None:
        return None
    states = arguments["hx"] if isinstance(arguments["hx"], (list, tuple)) else [arguments["hx"]]
    if all(item.target is aten.zeros.default and stack_top(item)[0] == paths[0] for item in states):
        return Candidate(paths[0], module, (arguments["input"],))  # the module itself begins at zero
    return Candidate(paths[0], module, (arguments["input"], states[0] if len(states) == 1 else tuple(states)))
