"""Values and calls of an fx graph as Python expressions."""

from __future__ import annotations

import json
import keyword
import math
import operator
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.errors import RewriteError, describe

_BINARY: dict[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.pow: "**",
    operator.matmul: "@",
    operator.and_: "&",
    operator.or_: "|",
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
}
_MODULES = {
    "F": F,
    "torch": torch,
    "torch.linalg": torch.linalg,
    "torch.special": torch.special,
    "torch.fft": torch.fft,
    "operator": operator,
    "math": math,
}


def attribute(root: nn.Module | None, path: str) -> str:
    """The expression that reads `path` from self: `self.layer1[0].conv1`; self itself for ""."""
    text, module = "self", root
    for atom in path.split(".") if path else ():
        if atom.isdigit() and isinstance(module, nn.ModuleList):
            text += f"[{atom}]"
        elif isinstance(module, nn.ModuleDict) and not is_name(atom):
            text += f'["{atom}"]'
        else:
            text = f"{text}.{atom}" if is_name(atom) else f'getattr({text}, "{atom}")'
        module = module._modules.get(atom) if module is not None else None
    return text


def is_name(text: str) -> bool:
    """Whether `text` can be written as a name in Python."""
    return text.isidentifier() and not keyword.iskeyword(text)


def function_name(target: Callable[..., Any]) -> str:
    """The name of a function as it is written with the imports of a generated file; "" when it has none."""
    name = getattr(target, "__name__", "")
    if isinstance(target, type):
        return name  # of a dataclass or named tuple: module_source writes its definition, too
    for prefix, module in _MODULES.items():
        short = name.removeprefix(f"{prefix.rpartition('.')[2]}_")  # torch.linalg.norm is called linalg_norm
        if getattr(module, short, None) is target:
            return f"{prefix}.{short}"
    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{target}"
    if isinstance(target, types.FunctionType | types.BuiltinFunctionType) and target.__module__.startswith("torch."):
        return f"{target.__module__}.{name}"
    return ""


class Expressions:
    """Writes values and calls, with variables by the names in `names` and parameters as attributes of self."""

    def __init__(self, root: nn.Module | None, names: Mapping[fx.Node, str]) -> None:
        self.root, self.names = root, names

    def value(self, value: Any) -> str:
        """Any argument of a node: a variable, a container or a constant."""
        if isinstance(value, fx.Node):
            return self.names[value] if value in self.names else self.call(value)
        if isinstance(value, tuple):
            items = ", ".join(self.value(item) for item in value)
            return f"({items},)" if len(value) == 1 else f"({items})"
        if isinstance(value, list):
            return f"[{', '.join(self.value(item) for item in value)}]"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{self.value(key)}: {self.value(item)}" for key, item in value.items()) + "}"
        return _constant(value)

    def call(self, node: fx.Node) -> str:
        """The right-hand side of the node's statement."""
        if node.op == "get_attr":
            return attribute(self.root, str(node.target))
        if node.op == "call_module":
            return f"{attribute(self.root, str(node.target))}({self._arguments(node.args, node.kwargs)})"
        if node.op == "call_method":
            first, *rest = node.args
            return f"{self._operand(first)}.{node.target}({self._arguments(rest, node.kwargs)})"
        assert callable(node.target)
        if node.target in _BINARY:
            return f"{self._operand(node.args[0])} {_BINARY[node.target]} {self._operand(node.args[1])}"
        if node.target is operator.neg:
            return f"-{self._operand(node.args[0])}"
        if node.target is getattr:
            return f"{self._operand(node.args[0])}.{node.args[1]}"
        if node.target is operator.getitem:
            return f"{self._operand(node.args[0])}[{self._index(node.args[1])}]"
        name = function_name(node.target)
        if not name:
            raise RewriteError(f"{describe(node)} calls a function that code which imports only torch cannot name")
        return f"{name}({self._arguments(node.args, node.kwargs)})"

    def _arguments(self, args: Any, kwargs: Mapping[str, Any]) -> str:
        return ", ".join([*map(self.value, args), *(f"{name}={self.value(item)}" for name, item in kwargs.items())])

    def _operand(self, value: Any) -> str:
        """A value beside an operator: with parentheses where it is itself an operation, or a negative number."""
        text = self.value(value)
        inlined = isinstance(value, fx.Node) and value not in self.names and value.target in {*_BINARY, operator.neg}
        return f"({text})" if inlined or (isinstance(value, (int, float)) and value < 0) else text

    def _index(self, index: Any) -> str:
        if isinstance(index, tuple) and index:
            one = len(index) == 1 and not isinstance(index[0], slice)  # x[1:3,] is x[1:3]
            return ", ".join(map(self._index, index)) + ("," if one else "")
        if isinstance(index, slice):
            ends = ["" if end is None else self.value(end) for end in (index.start, index.stop, index.step)]
            return f"{ends[0]}:{ends[1]}" + (f":{ends[2]}" if ends[2] else "")
        return self.value(index)


def _constant(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    return repr(value)
