"""How a value with options would be written by a person."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any


def written(value: Any) -> str:
    """The call that makes a dataclass, with those of the options that it shows that are not as by default."""
    told = []
    for field in fields(value):
        given = getattr(value, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.repr and given != default:
            told.append(f"{field.name}={given!r}")
    return f"{type(value).__name__}({', '.join(told)})"
