"""What may not shrink, by cause and by place in the user's code, from the reasons that an analysis gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_NODE = re.compile(
    r"(?P<cause>.*?) ?(?:by|in|of|from)? ?"  # what `errors.describe` writes: `node` (op) of shape (...) at file:1: code
    r"`(?P<node>[^`]+)` \((?P<op>[^)]+)\)(?: of shape \([^)]*\))?(?: at (?P<line>.*))?",
    re.DOTALL,
)


class Held(NamedTuple):
    """An axis that may not shrink, the node that holds it ("" where the reason names none), and the reason."""

    axis: str
    node: str
    reason: str


def by_cause(reasons: Mapping[str, str]) -> dict[str, dict[str, list[Held]]]:
    """The held axes by cause, and then by operator and source line; "" where a reason names no node.

    reasons: of each axis, both as text.
    """
    causes: dict[str, dict[str, list[Held]]] = {}
    for axis, reason in reasons.items():
        found = _NODE.fullmatch(reason)
        cause, place, node = (reason, "", "") if found is None else (found["cause"], _place(found), found["node"])
        causes.setdefault(cause, {}).setdefault(place, []).append(Held(axis, node, reason))
    return causes


def _place(found: re.Match[str]) -> str:
    """The operator with its source line; of an installed package without the way to it."""
    line = re.sub(r"^.*/site-packages/", "", found["line"] or "")
    return f"{found['op']} at {line}" if line else found["op"]
