"""What a user says of the widths that are allowed: which groups must not shrink, multiples, the largest loss."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

from fxprune.errors import PlanError
from fxprune.types import Coupling


def patterns_of(freeze: Any) -> tuple[str, ...]:
    """The names and globs that are given, one or several. Raises PlanError on anything else."""
    patterns = (freeze,) if isinstance(freeze, str) else tuple(freeze) if isinstance(freeze, Iterable) else (freeze,)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise PlanError(f"freeze={freeze!r}: give names or globs of parameters, modules or groups")
    return patterns


def check_widths(multiple_of: Any, max_ratio: Any) -> None:
    """Raise PlanError unless `multiple_of` is a whole number from 1, or None, and `max_ratio` a share."""
    whole = isinstance(multiple_of, int) and not isinstance(multiple_of, bool) and multiple_of >= 1
    if not whole and multiple_of is not None:
        raise PlanError(f"multiple_of={multiple_of!r} must be a whole number, at least 1")
    if not isinstance(max_ratio, Real) or not 0 <= float(max_ratio) <= 1:
        raise PlanError(f"max_ratio={max_ratio!r} must be in [0, 1]")


def frozen_groups(coupling: Coupling, freeze: Iterable[str]) -> set[str]:
    """The groups that a name or glob of a parameter, module or group freezes.

    Raises PlanError for one that matches nothing.
    """
    frozen: set[str] = set()
    for pattern in patterns_of(freeze):
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
