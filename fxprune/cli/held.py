"""What may not shrink, grouped by cause, for people to read."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from fxprune.held import by_cause
from fxprune.types import Coupling

_WIDTH = 110


def held_lines(coupling: Coupling) -> Iterator[str]:
    """Every held axis with its node, under the operator and source line, under the cause."""
    causes = by_cause({str(axis): reason for axis, reason in coupling.held.items()})
    yield f"held: {len(coupling.held)} axes{':' if causes else ''}"
    for cause, places in causes.items():
        yield f"  {cause}: {sum(map(len, places.values()))} axes"
        for place, axes in places.items():
            yield from [f"    {place}"] if place else []
            text = ", ".join(f"{one.axis} (`{one.node}`)" if one.node else one.axis for one in axes)
            yield from textwrap.wrap(text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
