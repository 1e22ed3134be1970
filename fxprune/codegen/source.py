"""A lifted graph as a Python file that stands alone: a plain nn.Module that imports only torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from fxprune.codegen.constructors import constructor
from fxprune.codegen.expressions import Expressions, attribute, is_name
from fxprune.codegen.forward import forward_lines
from fxprune.codegen.layout import laid_out
from fxprune.codegen.results import definition, result_classes

_SMALL = 64  # elements: a constant that is not in the state_dict is written out up to this size
CONSTANTS = "constants.pt"  # the file with larger ones

_DOCSTRING = '''"""{name}, as fxprune left it: {params:,} parameters. Needs only torch.

To load it, with the weights beside this file:

    from model import {name}
    from safetensors.torch import load_file

    net = {name}()
    net.load_state_dict(load_file("model.safetensors"))
    net.eval()
"""
'''

_BLOCK = '''
class Block(nn.Module):
    """Holds modules and tensors by name; the network's forward calls them."""

    def __init__(self, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

'''


_READ = f'        constants = torch.load(Path(__file__).with_name("{CONSTANTS}"), weights_only=True)'


def class_name(graph: fx.Graph) -> str:
    """The name of the class that the graph was captured from; Network where there is none to speak of."""
    for node in graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if stack and stack[0][0] == "":
            kind = stack[0][1] if isinstance(stack[0][1], str) else f"{stack[0][1].__module__}.{stack[0][1].__name__}"
            name = kind.rpartition(".")[2]
            return name if is_name(name) and not kind.startswith("torch.") and name != "Block" else "Network"
    return "Network"


def module_source(gm: fx.GraphModule) -> str:
    """The text of a file whose last class is the network: built without arguments, names of the state_dict unchanged.

    gm: a lifted graph. Its forward in the file is `gm.code`, line by line. What `large_constants` returns is read from
    a file beside it. Raises RewriteError where the graph calls something that torch alone does not have.
    """
    name = class_name(gm.graph)
    forward = forward_lines(list(gm.graph.nodes))[0]
    fields = list(_fields(gm))
    read = [_READ] if large_constants(gm) else []
    used = "\n".join([*read, *fields, *forward])
    block = _BLOCK.splitlines() if "Block(" in used else []
    for kind in result_classes(gm.graph):
        block += ["", *definition(kind), ""]
    used += "\n".join(block)
    lines = [
        _DOCSTRING.format(name=name, params=sum(item.numel() for item in gm.parameters())),
        *_imports(used),
        "",
        *block,
        "",
        f"class {name}(nn.Module):",
        f'    """Takes {_inputs(gm)}."""',
        "",
        "    def __init__(self) -> None:",
        "        super().__init__()",
        *read,
        *fields,
        "",
        *(f"    {line}" if line else "" for line in forward),
    ]
    return "\n".join(lines) + "\n"


def large_constants(gm: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors that are neither in the state_dict nor written into the source, by name, on the CPU."""
    return {
        name: tensor.detach().cpu().clone()
        for path, module in gm.named_modules()
        for leaf in sorted(module._non_persistent_buffers_set)
        if (tensor := module.get_buffer(leaf)).numel() > _SMALL
        for name in [f"{path}.{leaf}".lstrip(".")]
    }


def _imports(used: str) -> Iterator[str]:
    """The import statements that this text needs."""
    standard = [f"import {name}" for name in ("math", "operator") if re.search(rf"\b{name}\.", used)]
    standard += ["from dataclasses import dataclass"] if "@dataclass" in used else []
    standard += ["from pathlib import Path"] if "Path(" in used else []
    typing = [name for name in ("Any", "NamedTuple") if re.search(rf"\b{name}\b", used)]
    standard += [f"from typing import {', '.join(typing)}"] if typing else []
    yield from standard
    yield from [""] if standard else []
    yield from ["import torch"] if re.search(r"\btorch\.", used) else []
    yield from ["import torch.nn.functional as F"] if re.search(r"\bF\.", used) else []
    yield "from torch import Tensor, nn" if re.search(r"\bTensor\b", used) else "from torch import nn"


def _inputs(gm: fx.GraphModule) -> str:
    """The names and shapes of the inputs."""
    texts = []
    for node in (node for node in gm.graph.nodes if node.op == "placeholder"):
        shape = getattr(node.meta.get("val"), "shape", None)
        sizes = ", ".join(str(size) if isinstance(size, int) else "N" for size in shape or ())
        texts.append(f"{node.target} of shape ({sizes})" if sizes else str(node.target))
    return ", ".join(texts)


def _fields(gm: fx.GraphModule) -> Iterator[str]:
    """The body of __init__: every parameter, buffer and module, then what is shared, not saved, or frozen."""
    for name, part in _own(gm):
        if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
            yield from laid_out(f'self.register_buffer("{name}", {_tensor(part)})', indent=8)
        else:
            yield from laid_out(_assignment(gm, name, _part(part)), indent=8)
    yield from (f"        {line}" for line in _ties(gm))
    for path, module in gm.named_modules():
        for name in sorted(module._non_persistent_buffers_set):
            buffer = module.get_buffer(name)
            value = _literal(buffer) if buffer.numel() <= _SMALL else f'constants["{path}.{name}"]'.replace('".', '"')
            arguments = f'"{name}", {value}, persistent=False'
            yield from laid_out(f"{attribute(gm, path)}.register_buffer({arguments})", indent=8)
    yield from _freezing(gm)


def _ties(gm: fx.GraphModule) -> Iterator[str]:
    """Assignments that let modules and parameters with several names be one."""
    known: dict[int, str] = {}
    shared: list[str] = []
    parts: list[tuple[str, nn.Module | Tensor]] = [*gm.named_modules(remove_duplicate=False)]
    for path, part in [*parts, *gm.named_parameters(remove_duplicate=False)]:
        first = known.setdefault(id(part), path)
        if first != path and not any(path.startswith(f"{other}.") for other in shared):
            shared += [path] if isinstance(part, nn.Module) else []
            yield _assignment(gm, path, attribute(gm, first))


def _freezing(gm: fx.GraphModule) -> Iterator[str]:
    """Statements that keep frozen parameters frozen."""
    frozen = [name for name, tensor in gm.named_parameters() if not tensor.requires_grad]
    if frozen and len(frozen) == len(list(gm.parameters())):
        yield "        self.requires_grad_(False)"
    elif frozen:
        names = ", ".join(f'"{name}"' for name in frozen)
        yield from laid_out(f"frozen = [{names}]", indent=8)
        yield "        for name in frozen:"
        yield "            self.get_parameter(name).requires_grad_(False)"


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor | nn.Module]]:
    """What the module itself registers, in the order of its state_dict; buffers only where they are saved."""
    saved = {name: item for name, item in module._buffers.items() if name not in module._non_persistent_buffers_set}
    parts: dict[str, Tensor | nn.Module | None] = {**module._parameters, **saved, **module._modules}
    for name, part in parts.items():
        if part is not None:
            yield name, part


def _assignment(gm: fx.GraphModule, path: str, value: str) -> str:
    """The statement that puts a parameter or module at a path."""
    parent, _, leaf = path.rpartition(".")
    holder = attribute(gm, parent)
    if is_name(leaf):
        return f"{holder}.{leaf} = {value}"
    if isinstance(gm.get_submodule(parent), (nn.ModuleList, nn.ModuleDict)):
        return f"{attribute(gm, path)} = {value}"
    return f'setattr({holder}, "{leaf}", {value})'


def _part(part: Tensor | nn.Module) -> str:
    """The expression that builds a tensor or a module with all that is in it."""
    if isinstance(part, nn.Parameter):
        return f"nn.Parameter({_tensor(part)}{'' if part.is_floating_point() else ', requires_grad=False'})"
    if isinstance(part, Tensor):
        return _tensor(part)
    if isinstance(part, nn.ModuleList):
        return f"nn.ModuleList([{', '.join(map(_part, part))}])"
    if isinstance(part, nn.ModuleDict):
        return "nn.ModuleDict({" + ", ".join(f'"{name}": {_part(child)}' for name, child in part.items()) + "})"
    if type(part) is not nn.Module:
        return constructor(part)
    children = {name: _part(child) for name, child in _own(part)}
    if all(map(is_name, children)):
        return f"Block({', '.join(f'{name}={text}' for name, text in children.items())})"
    return "Block(**{" + ", ".join(f'"{name}": {text}' for name, text in children.items()) + "})"


def _tensor(tensor: Tensor) -> str:
    """A tensor of this shape and type, to be filled from the file of weights."""
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    return f"torch.zeros({', '.join(map(str, tensor.shape)) or '()'}{dtype})"


def _literal(tensor: Tensor) -> str:
    """A tensor with its values, which no file brings."""
    dtype = "" if tensor.dtype in (torch.float32, torch.int64, torch.bool) else f", dtype={tensor.dtype}"
    return f"torch.tensor({Expressions(None, {}).value(tensor.tolist())}{dtype})"
