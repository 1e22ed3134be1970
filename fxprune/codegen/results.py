"""The classes of what a forward returns, as text that stands alone: dataclasses and named tuples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import fx

from fxprune.codegen.expressions import Expressions


def result_classes(graph: fx.Graph) -> tuple[type, ...]:
    """The dataclasses and named tuples that a lifted graph makes, in order."""
    return tuple(dict.fromkeys(node.target for node in graph.nodes if isinstance(node.target, type)))


def definition(kind: type) -> Iterator[str]:
    """The lines that define a class with the same name and fields; its methods are left out."""
    named_tuple = not dataclasses.is_dataclass(kind)
    if not named_tuple:
        keyword = any(field.kw_only for field in dataclasses.fields(kind))
        yield "@dataclass(kw_only=True)" if keyword else "@dataclass"
    yield f"class {kind.__name__}{'(NamedTuple)' if named_tuple else ''}:"
    yield f'    """The fields of the original\'s {kind.__module__}.{kind.__qualname__}."""'
    yield ""
    for name, default in _fields(kind):
        yield f"    {name}: Any{default}"


def _fields(kind: type) -> Iterator[tuple[str, str]]:
    """Each field with its default as text."""
    if not dataclasses.is_dataclass(kind):
        known: dict[str, Any] = getattr(kind, "_field_defaults", {})
        for name in getattr(kind, "_fields", ()):
            yield name, _default(known[name]) if name in known else ""
        return
    for field in dataclasses.fields(kind):
        given = (field.default, field.default_factory)
        yield field.name, "" if given == (dataclasses.MISSING, dataclasses.MISSING) else _default(field.default)


def _default(value: Any) -> str:
    """A default of plain data; of anything else None."""
    plain = isinstance(value, (int, float, str, type(None)))
    return f" = {Expressions(None, {}).value(value)}" if plain else " = None"
