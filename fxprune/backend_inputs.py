"""The inputs of a graph that dynamo traced: which of them are tensors of a module, and how they are called there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch._dynamo.symbolic_convert import InstructionTranslator

from fxprune.errors import CaptureError

# L['self']._modules['conv']._parameters['weight']: an expression for the module, and the way from it to the tensor
_STEP = re.compile(r"\._(?:modules|parameters|buffers)\['([^']+)'\]|\.(\w+)")
_PLACE = re.compile(r"(.+?)(?:\._modules\['[^']+'\])*\._(?:parameters|buffers)\['[^']+'\]")


def inputs_of(gm: fx.GraphModule) -> list[fx.Node]:
    """The inputs of a graph, in order."""
    return [node for node in gm.graph.nodes if node.op == "placeholder"]


def source_of(node: fx.Node) -> str:
    """Dynamo's expression for an input; "" where it has none."""
    argument = node.meta.get("grapharg")
    name = getattr(getattr(argument, "source", None), "name", "")
    return str(name() if callable(name) else name)


def parameters_of(gm: fx.GraphModule, values: Mapping[fx.Node, Any]) -> tuple[nn.Module | None, dict[fx.Node, str]]:
    """The module whose tensors are inputs of the graph, and its own name for each of these inputs.

    values: the inputs. Gives None where no input is a parameter or buffer. A tied tensor goes by its first name.
    Raises CaptureError where there are several modules, and where one cannot be told by place and identity.
    """
    sources = {node: source_of(node) for node in values}
    modules = sorted({found[1] for source in sources.values() if (found := _PLACE.fullmatch(source))})
    if not modules:
        return None, {}
    if len(modules) > 1:
        raise CaptureError(f"the graph reads parameters of {' and of '.join(modules)}: compile the one that is planned")
    module = _module(modules[0])
    first: dict[int, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), name)
    tensors = _tensors(module)
    names = {}
    for node, source in sources.items():
        place = _place(source, modules[0])
        if place is None:
            continue
        if tensors.get(place) is not values[node]:
            raise CaptureError(f"`{place}` of {modules[0]} is not the tensor that the graph reads: compile it anew")
        names[node] = first.get(id(values[node]), place)
    return module, names


def _place(source: str, module: str) -> str | None:
    """The dotted name of a tensor in the module; None for what is no tensor of it."""
    way = source.removeprefix(module)
    steps = list(_STEP.finditer(way)) if way != source else []
    whole = bool(steps) and "".join(step[0] for step in steps) == way
    return ".".join(step[1] or step[2] for step in steps) if whole else None


def _module(expression: str) -> nn.Module:
    """The module that dynamo's expression stands for, in the frame that it traces."""
    try:
        output = InstructionTranslator.current_tx().output
        found = eval(expression, {"L": output.local_scope, "G": output.global_scope})
    except Exception as error:
        raise CaptureError(f"the module behind {expression} cannot be found: compile the module itself") from error
    if not isinstance(found, nn.Module):
        raise CaptureError(f"{expression} is a {type(found).__name__}: compile an nn.Module")
    if any(part.training for part in found.modules()):
        raise CaptureError("a plan holds for a network in evaluation: call model.eval() before it is compiled")
    return found


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a module by its dotted names, registered or not."""
    found: dict[str, Tensor] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        own = {**part._parameters, **part._buffers, **vars(part)}
        found |= {f"{path}.{name}".lstrip("."): item for name, item in own.items() if isinstance(item, Tensor)}
    return found
