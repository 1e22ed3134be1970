"""What may not shrink, as the web page shows it."""

from __future__ import annotations

import pytest

from fxprune.report_held import held_axes


@pytest.mark.parametrize(("count", "opened"), [(1, True), (4, True), (5, False)])
def test_many_axes_are_folded_away(count: int, opened: bool) -> None:
    page = held_axes({f"fc{number}.bias[0]": "an output" for number in range(count)})
    counted = "1 axis" if count == 1 else f"{count} axes"
    assert f'<details{" open" * opened}><summary>an output <span class="soft">{counted}</span></summary>' in page


def test_text_is_escaped_and_the_whole_reason_at_hand() -> None:
    page = held_axes({"<i>[0]": 'a < b of `"` (op)'})
    assert '<span title="a &lt; b of `&quot;` (op)">&lt;i&gt;[0]</span>' in page
    assert held_axes({}) == ""
