"""The signature of a captured graph: from flat lists of tensors back to the original's arguments and results."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from fxprune.errors import RewriteError


def plain_signature(graph: fx.Graph) -> None:
    """Gives a captured graph the original's arguments, by name, and its result, in the original's structure.

    Placeholders become those of the original; the tensors in a tuple, list or dict are picked from it. Raises
    RewriteError for structures of other classes than tuple, list, dict, dataclasses and named tuples.
    """
    if not isinstance(graph._codegen, _PyTreeCodeGen):
        return
    info = graph._codegen.pytree_info
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in reversed(placeholders):
        next(iter(graph.nodes)).prepend(node)
    assert info.out_spec is not None
    args, kwargs = pytree.tree_unflatten(placeholders, info.in_spec)
    body = placeholders[-1].next if placeholders else next(iter(graph.nodes))
    nested = {}
    for name, value in zip([*info.orig_args[: len(args)], *kwargs], [*args, *kwargs.values()], strict=True):
        if isinstance(value, fx.Node):
            value.target = name
            body.prepend(value)
            continue
        with graph.inserting_before(body):
            nested[graph.placeholder(name)] = value
    for argument, value in nested.items():
        argument.meta["val"] = pytree.tree_map_only(fx.Node, lambda node: node.meta.get("val"), value)
        _pick(graph, value, argument, body)
    output = graph.output_node()
    leaves = list(output.args[0]) if isinstance(output.args[0], (list, tuple)) else [output.args[0]]
    with graph.inserting_before(output):
        output.args = (_plain(graph, pytree.tree_unflatten(leaves, info.out_spec)),)


def _pick(graph: fx.Graph, value: Any, source: fx.Node, body: fx.Node) -> None:
    """Turns the placeholders in the structure `value` into subscripts or attributes of `source`."""
    pick: Callable[..., Any] = operator.getitem
    held = _fields(value)
    if held:
        pick = getattr
    elif type(value) is dict:
        held = value
    elif type(value) in (tuple, list):
        held = dict(enumerate(value))
    else:
        raise RewriteError(f"an input of class {type(value).__name__} cannot be written in plain code")
    for key, item in held.items():
        if isinstance(item, fx.Node):
            item.op, item.target, item.args = "call_function", pick, (source, key)
            body.prepend(item)
        elif isinstance(item, (tuple, list, dict)) or _fields(item):
            with graph.inserting_before(body):
                inner = graph.call_function(pick, (source, key))
            inner.meta["val"] = pytree.tree_map_only(fx.Node, lambda node: node.meta.get("val"), item)
            _pick(graph, item, inner, body)


def _fields(value: Any) -> dict[Any, Any]:
    """What a dataclass or named tuple holds, by name; nothing for anything else."""
    if isinstance(value, (Mapping, type)):
        return {}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: getattr(value, name) for name in getattr(value, "_fields", ())}


def _without_default(kind: type) -> set[str]:
    """The fields that the class must be given."""
    if not dataclasses.is_dataclass(kind):
        return set(getattr(kind, "_fields", ())) - set(getattr(kind, "_field_defaults", ()))
    missing = dataclasses.MISSING
    return {item.name for item in dataclasses.fields(kind) if item.default is item.default_factory is missing}


def _plain(graph: fx.Graph, value: Any) -> Any:
    """The result as tuples, lists and dicts; dataclasses and named tuples as calls of their class."""
    if isinstance(value, Mapping):
        return {key: _plain(graph, item) for key, item in value.items()}
    if fields := _fields(value) if not isinstance(value, fx.Node) else {}:
        needed = _without_default(type(value))
        given = {name: _plain(graph, item) for name, item in fields.items() if item is not None or name in needed}
        return graph.call_function(type(value), (), given)
    if isinstance(value, (tuple, list)):
        items = [_plain(graph, item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, (fx.Node, int, float, str, bool, type(None))):
        return value
    raise RewriteError(f"a result of class {type(value).__name__} cannot be written in plain code")
