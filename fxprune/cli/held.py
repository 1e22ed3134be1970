"""What may not shrink, grouped by cause, for people to read."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from fxprune.types import Coupling

_NODE = re.compile(
    r"(?P<cause>.*?) ?(?:by|in|of|from)? ?"  # what `describe` writes: `node` (op) of shape (...) at file:line: code
    r"`(?P<node>[^`]+)` \((?P<op>[^)]+)\)(?: of shape \([^)]*\))?(?: at (?P<line>.*))?"
)
_WIDTH = 110


def held_lines(coupling: Coupling) -> Iterator[str]:
    """Every held axis with its node, under the operator and source line, under the cause."""
    causes: dict[str, dict[str, list[str]]] = {}
    for axis, reason in coupling.held.items():
        found = _NODE.match(reason)
        cause, place, node = (reason, "", "") if found is None else _parts(found)
        causes.setdefault(cause, {}).setdefault(place, []).append(f"{axis} (`{node}`)" if node else str(axis))
    yield f"held: {len(coupling.held)} axes{':' if causes else ''}"
    for cause, places in causes.items():
        yield f"  {cause}: {sum(map(len, places.values()))} axes"
        for place, axes in places.items():
            yield from [f"    {place}"] if place else []
            yield from textwrap.wrap(", ".join(axes), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _parts(found: re.Match[str]) -> tuple[str, str, str]:
    """The cause, the operator with its source line, and the node."""
    line = re.sub(r"^.*/site-packages/", "", found["line"] or "")
    return found["cause"], f"{found['op']} at {line}" if line else found["op"], found["node"]
