"""What may not shrink, as a part of the web page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from fxprune.held import by_cause

_FEW = 4  # axes: so many are shown without a click


def held_axes(held: Mapping[str, str]) -> str:
    """The axes as HTML: a part for each cause, which opens where they are many; the pointer shows the whole reason."""
    parts = []
    for cause, places in by_cause(held).items():
        count = sum(map(len, places.values()))
        items = "".join(
            "<li>"
            + (f"<code>{escape(place)}</code><br>" if place else "")
            + ", ".join(f'<span title="{escape(one.reason)}">{escape(one.axis)}</span>' for one in axes)
            + "</li>"
            for place, axes in places.items()
        )
        shown = " open" if count <= _FEW else ""
        counted = f"{count} {'axis' if count == 1 else 'axes'}"
        parts.append(
            f'<details{shown}><summary>{escape(cause)} <span class="soft">{counted}</span></summary>'
            f'<ul class="plain">{items}</ul></details>'
        )
    return "\n".join(parts)
