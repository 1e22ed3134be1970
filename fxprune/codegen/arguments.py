"""The arguments of an operator call, by the names of its schema."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx
from torch._ops import OpOverload


def defaults(operator: OpOverload) -> dict[str, Any]:
    """The arguments of the schema that have a default value, with it."""
    return {item.name: item.default_value for item in operator._schema.arguments if item.has_default_value()}


def compact(value: Any) -> Any:
    """A size as a person writes it: `[3, 3]` is 3, `[1, 2]` is (1, 2); anything else is left as it is."""
    if isinstance(value, (list, tuple)) and value and all(type(item) is int for item in value):
        return value[0] if len(set(value)) == 1 else tuple(value)
    return value


def rank(node: Any) -> int:
    """How many dimensions the value of `node` has; -1 where the graph does not say."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.ndim if isinstance(value, Tensor) else -1
