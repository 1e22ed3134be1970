"""Lines are broken as the usual formatters break them."""

from __future__ import annotations

import pytest

from fxprune.codegen.layout import laid_out

CASES = {
    "short": ("x = f(a, b)", 20, ["x = f(a, b)"]),
    "body on one line": ("x = torch.cat([a, b], 1)", 20, ["x = torch.cat(", "    [a, b], 1", ")"]),
    "one item a line": (
        "x = call(first, second, third)",
        20,
        ["x = call(", "    first,", "    second,", "    third,", ")"],
    ),
    "no comma behind a lone item": (
        "x = List([alpha, beta, gamma])",
        16,
        ["x = List(", "    [", "        alpha,", "        beta,", "        gamma,", "    ]", ")"],
    ),
    "brackets in strings": ('x = f("a, (b", c)', 12, ["x = f(", '    "a, (b",', "    c,", ")"]),
    "nothing to break": ("x = " + "y" * 30, 20, ["x = " + "y" * 30]),
}


@pytest.mark.parametrize("case", CASES)
def test_breaks(case: str) -> None:
    text, width, expected = CASES[case]
    assert laid_out(text, width=width) == expected


def test_the_comma_counts() -> None:
    assert laid_out("x = f(g(aaa, bb), c)", width=15) == ["x = f(", "    g(aaa, bb),", "    c,", ")"]
    assert laid_out("x = f(g(aaa, bbb), c)", width=15)[1] == "    g("
