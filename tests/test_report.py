"""The report as text, JSON and HTML."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from math import inf, nan
from xml.etree import ElementTree

import pytest

from fxprune.report import GroupChange, LayerError, Report, StageError
from fxprune.types import Verification

REPORT = Report(
    before={"flops": 81_631_232, "params": 272_474},
    after={"flops": 47_300_000, "params": 150_000},
    budget={"flops": 47_346_114.56},
    groups=(
        GroupChange("conv1.weight", 16, 12, ("conv1.weight[0]", "bn1.weight[0]")),
        GroupChange("layer1.0.conv1.weight", 16, 16, ("layer1.0.conv1.weight[0]",)),
    ),
    held={
        "linear.weight[0]": "an output of the network",
        "linear.bias[0]": "an output of the network",
        "conv1.weight[2]": "kernel extent of `conv1` (aten.conv2d.default)",
        "conv1.weight[3]": "kernel extent of `conv1` (aten.conv2d.default)",
        "conv2.weight[2]": "kernel extent of `conv2` (aten.conv2d.default)",
    },
    layers=(LayerError("layer1.0.conv2", 0.4101, 0.0522),),
    verification=Verification(3.1e-16, 1e-9, "float64, 3 seeds", (3.1e-16,)),
    notes=("the batch stays static",),
    stages=(StageError("shrink", 0.0, 0.81234), StageError("reconstruct", 0.81234, 0.0431)),
    max_error=0.05,
    weak=("only 8 calibration images",),
    seconds={"capture": 1.23, "reconstruct": 10.0},
)

TEXT = """\
fxprune report: recipe fast, seed 0

cost         before        after     kept        limit
flops    81,631,232   47,300,000   57.9 %   47,346,114
params      272,474      150,000   55.1 %

group                   units   kept     share   axes
conv1.weight               16     12    75.0 %      2
layer1.0.conv1.weight      16     16   100.0 %      1

held-out error   before    after
shrink           0.0000   0.8123
reconstruct      0.8123   0.0431
at most                   0.0500

layer output error   shrunk   reconstructed
layer1.0.conv2       0.4101          0.0522

held: linear.weight[0], linear.bias[0]: an output of the network
held: conv1.weight[2], conv1.weight[3]: kernel extent of `conv1` (aten.conv2d.default), and 1 more
axes like these
warning: only 8 calibration images
note: the batch stays static
verified: max error 3.1e-16 (float64, 3 seeds)
11.2 s: capture 1.2, reconstruct 10.0"""

BARE = """\
fxprune report: recipe fast, seed 0

cost    before   after     kept   limit
flops       10       5   50.0 %

not verified: verification was switched off"""


def test_text() -> None:
    assert str(REPORT) == TEXT


def test_text_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(REPORT) == TEXT


def test_text_of_a_report_without_details() -> None:
    assert str(Report({"flops": 10}, {"flops": 5}, {}, ())) == BARE


def test_long_names_are_folded_and_not_cut() -> None:
    name = "a_module_of_a_long_name." * 8 + "weight"
    text = str(Report({"flops": 10}, {"flops": 5}, {}, (GroupChange(name, 4, 2, ()),)))
    assert name in "".join(line.split(" ")[0] for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 100


def test_names_that_look_like_markup_are_left_alone() -> None:
    assert "[bold]" in str(Report({"[bold]": 10}, {"[bold]": 5}, {}, ()))


def test_json_says_everything() -> None:
    data = json.loads(REPORT.to_json())
    assert data["cost"]["flops"] == {"before": 81_631_232, "after": 47_300_000, "limit": 47_346_114.56}
    assert data["cost"]["params"]["limit"] is None
    assert data["groups"][0] == {
        "name": "conv1.weight",
        "before": 16,
        "after": 12,
        "axes": ["conv1.weight[0]", "bn1.weight[0]"],
    }
    assert data["held"] == REPORT.held
    assert data["layers"] == [{"layer": "layer1.0.conv2", "before": 0.4101, "after": 0.0522}]
    assert data["stages"][1] == {"stage": "reconstruct", "before": 0.81234, "after": 0.0431}
    assert (data["max_error"], data["weak"]) == (0.05, ["only 8 calibration images"])
    assert data["verification"]["ok"] is True
    assert data["notes"] == ["the batch stays static"]
    assert data["seconds"] == REPORT.seconds
    assert (data["recipe"], data["seed"], data["version"]) == ("fast", 0, 1)


def test_json_without_verification() -> None:
    assert json.loads(Report({"flops": 10}, {"flops": 5}, {}, ()).to_json())["verification"] is None


def test_html_is_self_contained() -> None:
    page = REPORT.to_html()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"https?:|<script|<link|<img|url\(|@import|src=", page)
    for text in ("81,631,232", "47,346,114", "conv1.weight", "75.0 %", "width:75.0%", "float64, 3 seeds", "Verified"):
        assert text in page
    for text in ("only 8 calibration images", "reconstruct</td>", "0.0431", "at most", "0.0500"):
        assert text in page


def plotted(*errors: tuple[float, float]) -> ElementTree.Element:
    """The plot of layers with these errors."""
    layers = tuple(LayerError(f"layer{number} <{number}>", *pair) for number, pair in enumerate(errors))
    page = Report({"flops": 10}, {"flops": 5}, {}, (), layers=layers).to_html()
    return ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + len("</svg>")])


def heights(plot: ElementTree.Element, css: str) -> list[float]:
    return [float(mark.get("cy", "")) for mark in plot.iterfind(f"g/circle[@class='{css}']")]


def test_the_plot_has_two_marks_for_each_layer_on_a_logarithmic_axis() -> None:
    plot = plotted((1.0, 0.1), (0.1, 0.01), (0.01, 0.1))
    shrunk, solved = heights(plot, "shrunk"), heights(plot, "solved")
    assert shrunk == [34.0, 145.0, 256.0], "a decade has the same length everywhere"
    assert solved == [145.0, 256.0, 145.0]
    assert [line.get("class") for line in plot.iterfind("g/line")] == ["better", "better", "worse"]
    assert [text.text for text in plot.iterfind("g/title")] == [
        "layer0 <0>: 1 shrunk, 0.1 reconstructed",
        "layer1 <1>: 0.1 shrunk, 0.01 reconstructed",
        "layer2 <2>: 0.01 shrunk, 0.1 reconstructed",
    ]


def test_the_plot_has_a_title_and_numbers_for_those_who_read_it() -> None:
    plot = plotted((0.5, 0.05), (0.04, 0.002))
    title = plot.find("title")
    assert title is not None and title.get("id") == plot.get("aria-labelledby") and plot.get("role") == "img"
    assert title.text == (
        "Errors of the outputs of 2 layers on a logarithmic axis, shrunk and reconstructed: 2 of them fell"
    )
    numbers = [text.text for text in plot.iterfind("text") if (text.text or "")[0].isdigit()]
    assert numbers == ["0.001", "0.01", "0.1", "1"]


@pytest.mark.parametrize("count", [1, 8, 60, 300])
def test_marks_stay_in_the_plot_and_apart(count: int) -> None:
    plot = plotted(*((0.3 * 1.01**number, 0.1) for number in range(count)))
    centers = [float(mark.get("cx", "")) for mark in plot.iterfind("g/circle[@class='solved']")]
    radii = [float(mark.get("r", "")) for mark in plot.iterfind("g/circle[@class='solved']")]
    assert len(centers) == count
    assert all(52 + radius <= center <= 760 - radius for center, radius in zip(centers, radii, strict=True))
    gaps = [right - left for left, right in pairwise(centers)]
    assert all(gap >= 1.5 * radii[0] for gap in gaps)


@pytest.mark.parametrize(
    "errors", [(0.0, 0.0), (nan, 0.1), (0.1, inf), (1e-30, 1.0), (1.0, 1.0), (-1e-9, 0.5), (nan, nan)]
)
def test_every_error_has_a_place_in_the_plot(errors: tuple[float, float]) -> None:
    plot = plotted(errors)
    assert all(34 <= height <= 256 for css in ("shrunk", "solved") for height in heights(plot, css))


def test_tiny_errors_do_not_stretch_the_axis() -> None:
    plot = plotted((0.5, 0.05), (1e-15, 1e-16))
    assert [text.text for text in plot.iterfind("text")][:2] == ["0.01", "0.02"]
    assert next(text.text for text in plotted((0.5, 1e-4)).iterfind("text")) == "0.0001"


def test_nothing_is_plotted_where_nothing_was_reconstructed() -> None:
    assert "<svg" not in Report({"flops": 10}, {"flops": 5}, {}, ()).to_html()


def test_html_escapes_what_comes_from_the_model() -> None:
    page = Report(
        {"flops": 10},
        {"flops": 5},
        {},
        (GroupChange("<script>alert(1)</script>", 2, 1, ("<b>[0]",)),),
        held={"<i>": "a < b"},
        notes=("<u>note</u>",),
        weak=("<s>weak</s>",),
        stages=(StageError("<em>stage", 1.0, 0.5),),
    ).to_html()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a &lt; b" in page
    assert "&lt;u&gt;" in page
    assert "&lt;s&gt;" in page
    assert "&lt;em&gt;" in page


def test_html_tells_a_failed_verification() -> None:
    proof = Verification(0.5, 1e-9, "float64", (0.5,))
    assert "Verification FAILED" in Report({"flops": 10}, {"flops": 5}, {}, (), verification=proof).to_html()
