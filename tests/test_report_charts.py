"""The charts of the report: where marks and bars stand, and what they say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from math import inf, nan
from xml.etree import ElementTree

import pytest

from fxprune.report import GroupChange, LayerDensity, LayerError, Report
from fxprune.report_charts import short_name


def charts(report: Report) -> list[ElementTree.Element]:
    """The drawings on the page of a report."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", report.to_html(), re.DOTALL)]


def plotted(*errors: tuple[float, float]) -> ElementTree.Element:
    """The plot of layers with these errors."""
    layers = tuple(LayerError(f"layer{number} <{number}>", *pair) for number, pair in enumerate(errors))
    return charts(Report({"flops": 10}, {"flops": 5}, {}, (), layers=layers))[0]


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
    assert all(64 + radius <= center <= 760 - radius for center, radius in zip(centers, radii, strict=True))
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
    assert [text.text for text in plot.iterfind("text")][:2] == ["\u2264 0.01", "0.02"]
    assert next(text.text for text in plotted((0.5, 1e-4)).iterfind("text")) == "0.0001"


def test_nothing_is_plotted_where_nothing_was_reconstructed() -> None:
    assert "<svg" not in Report({"flops": 10}, {"flops": 5}, {}, ()).to_html()


def densities(*pairs: tuple[float | None, float], name: str = "layer{}.conv.weight") -> ElementTree.Element:
    """The chart of layers with these densities, of single weights and of channels."""
    layers = tuple(LayerDensity(name.format(number), 1_000, *pair) for number, pair in enumerate(pairs))
    return charts(Report({"flops": 10}, {"flops": 5}, {}, (), densities=layers))[0]


def widths(*pairs: tuple[int, int]) -> ElementTree.Element:
    """The chart of groups with these widths, before and after."""
    groups = tuple(GroupChange(f"layer{number}.conv.weight", *pair, ()) for number, pair in enumerate(pairs))
    return charts(Report({"flops": 10}, {"flops": 5}, {}, groups))[0]


def bars(chart: ElementTree.Element, css: str) -> list[float]:
    """The heights of the bars of a kind, as shares of the height of the grid."""
    lines = [float(line.get("y1", "")) for line in chart.iterfind("line[@class='grid']")]
    return [
        round(float(bar.get("height", "")) / (max(lines) - min(lines)), 2)
        for bar in chart.iterfind(f"g/rect[@class='{css}']")
    ]


def axis(chart: ElementTree.Element) -> list[str]:
    """The numbers beside the grid."""
    return [text.text or "" for text in chart.iterfind("text[@text-anchor='end']") if text.get("x") == "58"]


def labels(chart: ElementTree.Element) -> list[ElementTree.Element]:
    return chart.findall("text[@class='label']")


def test_densities_are_two_bars_a_layer_on_a_linear_axis_with_a_line_at_one() -> None:
    chart = densities((1.0, 0.8), (0.5, 0.25), (None, 0.6))
    assert axis(chart) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert (bars(chart, "first"), bars(chart, "second")) == ([1.0, 0.5], [0.8, 0.25, 0.6])
    assert [line.get("y1") for line in chart.iterfind("line[@class='mark']")] == ["34.0"]
    assert [title.text for title in chart.iterfind("g/title")] == [
        "layer0.conv.weight: 0.800 of 1,000 weights, 1.000 if single weights may go",
        "layer1.conv.weight: 0.250 of 1,000 weights, 0.500 if single weights may go",
        "layer2.conv.weight: 0.600 of 1,000 weights",
    ]
    assert [label.text for label in labels(chart)] == ["layer0.conv", "layer1.conv", "layer2.conv"]


def test_densities_may_exceed_one() -> None:
    chart = densities((1.7, 1.9), (0.5, 0.4))
    assert axis(chart) == ["0", "0.5", "1", "1.5", "2"]
    assert bars(chart, "first") == [0.85, 0.25]
    assert [line.get("y1") for line in chart.iterfind("line[@class='mark']")] == ["145.0"], "half of the height"


def test_widths_before_and_after() -> None:
    chart = widths((16, 8), (64, 100))
    assert axis(chart) == ["0", "20", "40", "60", "80", "100"]
    assert (bars(chart, "first"), bars(chart, "second")) == ([0.16, 0.64], [0.08, 1.0])
    assert [title.text for title in chart.iterfind("g/title")] == [
        "layer0.conv.weight: 16 units before, 8 after",
        "layer1.conv.weight: 64 units before, 100 after",
    ]
    assert chart.find("line[@class='mark']") is None


@pytest.mark.parametrize(
    ("chart", "title"),
    [
        (densities((1.0, 0.5)), "Densities of 1 layers on a linear axis: single weights and channels"),
        (widths((8, 4), (8, 8)), "Widths of 2 channel groups on a linear axis: before and after"),
    ],
    ids=["densities", "widths"],
)
def test_a_chart_has_a_title_for_those_who_do_not_see_it(chart: ElementTree.Element, title: str) -> None:
    found = chart.find("title")
    assert found is not None and found.text == title
    assert found.get("id") == chart.get("aria-labelledby") and chart.get("role") == "img"


@pytest.mark.parametrize("count", [1, 3, 30, 120, 300])
def test_bars_stay_in_the_chart_and_apart_and_labels_do_not_touch(count: int) -> None:
    chart = densities(*((0.5, 0.25) for _ in range(count)))
    edges = [
        (float(bar.get("x", "")), float(bar.get("x", "")) + float(bar.get("width", "")))
        for group in chart.iterfind("g")
        for bar in group.findall("rect")[1:]
    ]
    assert len(edges) == 2 * count and edges[0][0] >= 64 and edges[-1][1] <= 760
    assert all(right[0] >= left[1] - 0.02 for left, right in pairwise(edges))
    assert all(0.5 <= right - left <= 18 for left, right in edges)
    assert apart(labels(chart))
    assert labels(chart)[0].text == "layer0.conv"
    assert len(labels(chart)) >= min(count, 40)


def apart(found: Sequence[ElementTree.Element]) -> bool:
    """Whether labels of eleven pixels have a place each: side by side where they are upright."""
    turned = [re.match(r"translate\(([\d.]+) \d+\) rotate\(-90\)", label.get("transform", "")) for label in found]
    if all(turned):
        places, room = [float(match[1]) for match in turned if match], 13.0
    else:
        places, room = (
            [float(label.get("x", "")) for label in found],
            6.0 * max(len(label.text or "") for label in found),
        )
    return all(right - left >= room for left, right in pairwise(places))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1"),
        ("layer1.0.conv1.weight#2", "layer1.0.conv1#2"),
        ("layer1.0.conv1.weight_g", "layer1.0.conv1.weight_g"),
        ("a_backbone_of_a_long_name.blocks.3.conv.weight", "blocks.3.conv"),
        ("branches_with_a_long_name.3.0.weight", "3.0"),
        ("encoder.layers.encoder_layer_0.self_attention.in_proj_weight", "encoder_layer_0…in_proj_weight"),
        ("encoder.layers.encoder_layer_0.mlp.0.weight", "encoder_layer_0.mlp.0"),
        ("features.denseblock4.denselayer16.conv1.weight", "denseblock4.denselayer16.conv1"),
        ("a_parameter_without_any_number_or_dot", "a_parameter_without_any_number_or_dot"),
    ],
)
def test_short_names_tell_layers_apart(name: str, shown: str) -> None:
    assert short_name(name, 24) == shown


def test_long_labels_lose_their_beginning_and_stay_in_the_drawing() -> None:
    chart = densities(*[(0.5, 0.25)] * 20, name="a_very_long_name_of_blocks_number_{}.conv.weight")
    assert labels(chart)[3].text == "…ng_name_of_blocks_number_3.conv"
    bottom = float((chart.get("viewBox") or "").split()[3])
    assert bottom >= 264 + 32 * 5.5


def test_a_layer_without_weights_has_a_place_in_the_chart() -> None:
    assert bars(densities((0.0, 0.0)), "second") == [0.0]
    assert bars(widths((0, 0)), "second") == [0.0]
