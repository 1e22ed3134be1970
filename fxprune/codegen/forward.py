"""The code of a lifted graph: a forward as a person writes it, and the very code that runs."""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.graph import CodeGen, PythonCode, _register_custom_builtin

from fxprune.codegen.expressions import Expressions
from fxprune.codegen.layout import WIDTH, laid_out
from fxprune.codegen.variables import Variables, module_paths, name_variables

_WIDTH = WIDTH - 4  # the same lines stand in a class, too
_PARAGRAPH = 24  # statements; a longer one is divided along the modules below

# fx writes the imports of a pickled module by name, and cannot work out this one
_register_custom_builtin("F", "import torch.nn.functional as F", F)


class ReadableCodeGen(CodeGen):
    """Prints a graph of modules, functions and methods with few variables, reused as soon as their values are dead."""

    def _gen_python_code(self, nodes: Any, root_module: str, namespace: Any, **options: Any) -> PythonCode:
        ordered = list(nodes)
        lines, line_of = forward_lines(ordered)
        known = {"torch": torch, "F": F, "Tensor": Tensor, "operator": operator, "math": math}
        used = set(re.findall(r"\w+", "\n".join(lines)))
        names = {name: value for name, value in known.items() if name in used}
        names |= {node.target.__name__: node.target for node in ordered if isinstance(node.target, type)}
        position = {node: index for index, node in enumerate(ordered)}
        line_map: dict[int, int | None] = {line: position[node] for line, node in line_of.items()}
        return PythonCode("\n" + "\n".join(lines) + "\n", names, line_map, 2)


def forward_lines(nodes: Sequence[fx.Node]) -> tuple[list[str], dict[int, fx.Node]]:
    """The lines of `def forward`, not indented, and the node behind each line, counted from 1."""
    variables = name_variables(nodes)
    expressions = Expressions(nodes[0].graph.owning_module, variables.names)
    inputs = [node for node in nodes if node.op == "placeholder"]
    lines = laid_out(
        f"def forward({', '.join(['self', *map(_parameter, inputs)])}){_returned(nodes[-1])}:", width=_WIDTH
    )
    line_of: dict[int, fx.Node] = {}
    body = [node for node in variables.statements if node.op != "placeholder"]
    first = _paragraph_starts(body)
    for node in body:
        if node in first:
            lines.append("")
        for line in _statement(node, variables, expressions):
            lines.append(line)
            line_of[len(lines)] = node
    return lines, line_of


def _parameter(node: fx.Node) -> str:
    """A parameter of forward, with its type and default."""
    name = str(node.target)
    kind = ": Tensor" if isinstance(node.meta.get("val"), Tensor) else ""
    if not node.args:
        return name + kind
    return f"{name}{kind} = {node.args[0]!r}" if kind else f"{name}={node.args[0]!r}"


def _returned(output: fx.Node) -> str:
    """The annotation of what forward returns; "" where it is more than tensors in a tuple, list or dict."""
    kind = _type_of(output.args[0]) if output.op == "output" else ""
    return f" -> {kind}" if kind else ""


def _type_of(value: Any) -> str:
    if isinstance(value, fx.Node):
        return "Tensor" if isinstance(value.meta.get("val"), Tensor) else ""
    if isinstance(value, tuple):
        kinds = [_type_of(item) for item in value]
        return f"tuple[{', '.join(kinds)}]" if kinds and all(kinds) else ""
    if isinstance(value, (list, dict)):
        kinds = [_type_of(item) for item in (value.values() if isinstance(value, dict) else value)]
        head = "dict[str, " if isinstance(value, dict) else "list["
        return f"{head}{kinds[0]}]" if kinds and kinds[0] and len(set(kinds)) == 1 else ""
    return "None" if value is None else ""


def _statement(node: fx.Node, variables: Variables, expressions: Expressions) -> list[str]:
    if node.op == "output":
        return laid_out(f"return {expressions.value(node.args[0])}", indent=4, width=_WIDTH)
    targets = variables.unpacked.get(node) or ((variables.names[node],) if node.users else ())
    head = ", ".join(targets) + " = " if targets else ""
    lines = laid_out(head + expressions.call(node), indent=4, width=_WIDTH)
    if node in variables.dead:
        dead = ", ".join(variables.dead[node])
        lines += laid_out(f"del {dead}" if len(dead) < 110 else f"del ({dead})", indent=4, width=_WIDTH)
    return lines


def _paragraph_starts(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The statements that a blank line goes before: the first of each module, unless it would stand alone."""
    modules = _paragraphs(nodes)
    runs = [list(run) for _, run in itertools.groupby(nodes, key=modules.__getitem__)]
    lone = [len(run) == 1 for run in runs]
    return {run[0] for index, run in enumerate(runs) if index and not lone[index] and not (index == 1 and lone[0])}


def _paragraphs(nodes: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """The module that each statement belongs to: the outermost with at most _PARAGRAPH statements."""
    paths = {node: path.split(".") for node, path in module_paths(nodes).items() if node.op != "output"}
    size = Counter(tuple(path[:depth]) for path in paths.values() for depth in range(1, len(path) + 1))
    chosen = {}
    last = ""
    for node in nodes:
        path = paths.get(node)
        if path is not None:
            fitting = (
                depth
                for depth in range(1, len(path))
                if size[tuple(path[:depth])] <= _PARAGRAPH and not path[depth].isdigit()  # blocks of a list stand apart
            )
            last = ".".join(path[: next(fitting, len(path))])
        chosen[node] = last
    return chosen
