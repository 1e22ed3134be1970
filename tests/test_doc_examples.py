"""The examples in docs/ are run, and must print what is shown below them."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from fxprune.allocate import METHODS
from fxprune.coupling.flow import RULES
from fxprune.importance import IMPORTANCES
from fxprune.widths import METHODS as WIDTHS

DOCS = Path(__file__).parents[1] / "docs"
REGISTRIES: tuple[dict[Any, Any], ...] = (RULES, IMPORTANCES, METHODS, WIDTHS)
EXAMPLE = re.compile(r"```python\n(.*?)```\n(?:```text\n(.*?)```)?", re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [
        "how-coupling-works.md",
        "theory.md",
        "pruning-at-initialisation.md",
        "quantization.md",
        "adding-an-operator.md",
        "adding-an-importance.md",
        "adding-a-width-method.md",
    ],
)
def test_examples_print_what_is_shown(page: str) -> None:
    known = [dict(registry) for registry in REGISTRIES]
    names: dict[str, Any] = {"__name__": "docs"}
    found = EXAMPLE.findall((DOCS / page).read_text())
    assert found
    try:
        for code, shown in found:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, page, "exec"), names)
            assert printed.getvalue() == shown
    finally:
        for registry, entries in zip(REGISTRIES, known, strict=True):
            registry.clear()
            registry.update(entries)
