"""Which groups must not shrink, from the names and globs that a user gives."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from fxprune.errors import PlanError
from fxprune.types import Coupling


def frozen_groups(coupling: Coupling, freeze: Iterable[str]) -> set[str]:
    """The groups that a name or glob of a parameter, module or group freezes.

    Raises PlanError for one that matches nothing.
    """
    frozen: set[str] = set()
    patterns = [freeze] if isinstance(freeze, str) else list(freeze)
    for pattern in patterns:
        names = {name for name in (*coupling.param_fields, *coupling.by_name) if _matches(name, pattern)}
        if not names:
            raise PlanError(f"freeze={pattern!r} matches no parameter, module or group")
        for group in coupling.groups:
            if group.name in names or any(axis.param in names for axis in group.axes):
                frozen.add(group.name)
    return frozen


def _matches(name: str, pattern: str) -> bool:
    """Whether `pattern` names `name` itself or a module above it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: end + 1]), pattern) for end in range(len(parts)))
