"""The report as text, JSON and HTML."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from fxprune.report import GroupChange, LayerDensity, LayerError, Report, StageError
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

BEFORE_TRAINING = Report(
    before={"params": 1_000, "memory": 4_000},
    after={"params": 900, "memory": 3_000},
    budget={"params": 900.5},
    groups=(
        GroupChange("stem.weight", 8, 20, ("stem.weight[0]",)),
        GroupChange("body.weight", 16, 4, ("body.weight[0]",)),
    ),
    notes=("they were drawn with seed 0",),
    recipe="preconfig",
    densities=(LayerDensity("stem.weight", 216, 1.0, 2.5), LayerDensity("body.weight", 1_152, None, 0.625)),
    objective={"single weights": -1.23456, "channels": -0.00001},
    unverified="a network that grows has no oracle",
)

TEXT_BEFORE_TRAINING = """\
fxprune report: recipe preconfig, seed 0

cost     before   after     kept   limit
params    1,000     900   90.0 %     900
memory    4,000   3,000   75.0 %

group         units   kept     share   axes
stem.weight       8     20   250.0 %      1
body.weight      16      4    25.0 %      1

layer density   weights   single weights   channels
stem.weight         216            1.000      2.500
body.weight       1,152                       0.625

objective (0 is the original): single weights -1.2346, channels 0.0000
note: they were drawn with seed 0
not verified: a network that grows has no oracle"""

BARE = """\
fxprune report: recipe fast, seed 0

cost    before   after     kept   limit
flops       10       5   50.0 %

not verified: verification was switched off"""


def test_text() -> None:
    assert str(REPORT) == TEXT


def test_text_of_a_network_before_its_training() -> None:
    assert str(BEFORE_TRAINING) == TEXT_BEFORE_TRAINING


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


def test_json_of_a_network_before_its_training() -> None:
    data = json.loads(BEFORE_TRAINING.to_json())
    assert data["densities"] == [
        {"layer": "stem.weight", "weights": 216, "best": 1.0, "kept": 2.5},
        {"layer": "body.weight", "weights": 1_152, "best": None, "kept": 0.625},
    ]
    assert data["objective"] == {"single weights": -1.23456, "channels": -0.00001}
    assert (data["verification"], data["unverified"]) == (None, "a network that grows has no oracle")
    assert (json.loads(REPORT.to_json())["densities"], json.loads(REPORT.to_json())["unverified"]) == ([], None)


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
        densities=(LayerDensity("<script>layer", 8, 0.5, 0.5),),
        objective={"<sum>": 1.0},
        unverified="<why>",
    ).to_html()
    assert not re.search("<(?:script|b|i|u|s|em|sum|why)>", page)
    assert page.count("&lt;script&gt;layer") == 3, "in the table, below the bars and for the pointer"
    assert "&lt;sum&gt; 1.0000" in page and "Not verified: &lt;why&gt;." in page
    assert "&lt;script&gt;" in page
    assert "a &lt; b" in page
    assert "&lt;u&gt;" in page
    assert "&lt;s&gt;" in page
    assert "&lt;em&gt;" in page


def test_html_of_a_network_before_its_training() -> None:
    page = BEFORE_TRAINING.to_html()
    for text in ("<td>body.<wbr>weight</td>", ">1,152</td>", ">2.500</td>", "single weights -1.2346, channels 0.0000"):
        assert text in page
    assert "Layer densities" in page and "Layer densities" not in REPORT.to_html()


def test_bars_of_shares_have_one_scale_and_the_longest_takes_all_room() -> None:
    grown = re.findall(r'class="bar" style="width:([\d.]+)%"><div style="width:([\d.]+)%"', BEFORE_TRAINING.to_html())
    costs, groups = grown[:2], grown[2:]
    assert costs == [("100.0", "90.0"), ("100.0", "75.0")]
    assert groups == [("40.0", "250.0"), ("40.0", "25.0")], "the original is the bar below: 2.5 of it are the room"


@pytest.mark.parametrize("report", [REPORT, BEFORE_TRAINING, Report({"flops": 10}, {"flops": 5}, {}, ())])
def test_html_is_well_formed(report: Report) -> None:
    opened: list[str] = []

    class Page(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "wbr", "br"):  # they have no end
                opened.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert "svg" in opened, f"{tag} closes itself only in a drawing"

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    parser = Page()
    parser.feed(report.to_html())
    parser.close()
    assert opened == []
    marks = re.findall(r'\bid="([^"]+)"', report.to_html())
    assert len(set(marks)) == len(marks)


def test_html_links_to_each_section_that_is_there() -> None:
    page = REPORT.to_html()
    assert re.findall(r'<a href="#([^"]+)">', page) == re.findall(r'<section id="([^"]+)">', page)
    assert re.findall("<h2>([^<]+)</h2>", page) == [
        "Warnings",
        "Cost",
        "Notes",
        "Channel groups",
        "Held-out error of the outputs",
        "Errors of the layer outputs",
        "Held axes",
        "Seconds",
    ]
    assert '<section id="section-held-out-error-of-the-outputs">\n<h2>Held-out error' in page


def test_html_fits_the_width_of_a_phone_and_scrolls_what_does_not() -> None:
    page = REPORT.to_html()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "layer1.<wbr>0.<wbr>conv1.<wbr>weight</summary>" in page
    wide = page.count("<table>") + page.count("<svg")
    assert page.count('<div class="scroll">\n<table>') + page.count('<div class="scroll">\n<svg') == wide == 7


def test_html_tells_a_failed_verification() -> None:
    proof = Verification(0.5, 1e-9, "float64", (0.5,))
    assert "Verification FAILED" in Report({"flops": 10}, {"flops": 5}, {}, (), verification=proof).to_html()
