"""The text of two networks side by side."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.diff import Diff, Line, diff


class Classifier(nn.Module):
    """A forward with a size written out, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.gain = nn.Parameter(torch.ones(8, 1, 1))
        self.fc = nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x)) * self.gain
        return self.fc(x.reshape(x.shape[0], 8 * 16))


@pytest.fixture
def pruned() -> fp.Result:
    return fp.prune(Classifier().eval(), torch.randn(2, 3, 4, 4), budget=fp.Budget(params=0.6), recipe="magnitude")


def test_a_pruned_network_beside_the_original(pruned: fp.Result) -> None:
    assert str(pruned.diff()) == (
        "modules: 3 of 4 changed\n"
        "  gain: Parameter(8, 1, 1) -> Parameter(4, 1, 1)\n"
        "  conv1: Conv2d(3, 8) -> Conv2d(3, 4)\n"
        "  fc: Linear(in_features=128) -> Linear(in_features=64)\n"
        "code: 1 of 7 lines changed\n"
        "      y = self.relu(y)\n"
        "      y = y * self.gain\n"
        "-     x = y.reshape(x.size(0), 128)\n"
        "+     x = y.reshape(x.size(0), 64)\n"
        "      x = self.fc(x)\n"
        "      return x"
    )


def test_networks_are_left_as_they_are(pruned: fp.Result) -> None:
    gm = fp.capture(Classifier().eval(), torch.randn(2, 3, 4, 4))
    before = gm.code, pruned.model.code
    diff(gm, pruned.model)
    assert (gm.code, pruned.model.code) == before


def test_a_network_beside_itself(pruned: fp.Result) -> None:
    same = diff(pruned.model, pruned.model)
    assert not same.changed
    assert str(same) == "modules: 0 of 4 changed\ncode: 0 of 7 lines changed"
    assert same.to_dict() == {"modules": [], "code": []}


def test_modules_and_lines_that_only_one_has() -> None:
    before = fp.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(2, 4))
    after = fp.capture(nn.Sequential(nn.Linear(4, 4), nn.GELU()).eval(), torch.randn(2, 4))
    text = str(diff(before, after))
    assert "  1: ReLU() -> GELU(approximate='none')\n" in text
    assert "  2: removed: Linear(in_features=4, out_features=2, bias=True)\n" in text
    assert "  2: added: Linear(in_features=4, out_features=2, bias=True)\n" in str(diff(after, before))


def test_plain_data_has_what_changed(pruned: fp.Result) -> None:
    data = pruned.diff().to_dict()
    assert [line["name"] for line in data["modules"]] == ["gain", "conv1", "fc"]
    assert data["code"] == [
        {"before": "    x = y.reshape(x.size(0), 128)", "after": "    x = y.reshape(x.size(0), 64)"}
    ]


def test_a_page_marks_what_changed(pruned: fp.Result) -> None:
    page = pruned.diff().to_html()
    assert '<td class="old">conv1: Conv2d(3, <b>8</b>, ' in page
    assert '<td class="new">conv1: Conv2d(3, <b>4</b>, ' in page
    assert page.count('<td class="same">relu: ReLU()</td>') == 2
    assert "prefers-color-scheme: dark" in page
    assert "http" not in page
    assert "<th>code before (1 of 7 changed)</th><th>code after</th>" in page
    assert len(re.findall("<tr>", page)) == len(re.findall("</tr>", page)) == 2 + 4 + 7
    assert pruned.diff()._repr_html_() == page


def test_a_part_without_changes_is_shown_once() -> None:
    page = Diff((Line("ReLU()", "GELU()", "act"),), (Line("x = y", "x = y"),)).to_html()
    assert '<tr><th colspan="2">code (unchanged)</th></tr>\n<tr><td class="same" colspan="2">x = y</td></tr>' in page
    assert "<th>modules before (1 of 1 changed)</th><th>modules after</th>" in page


def test_text_of_the_network_is_escaped() -> None:
    page = Diff((), (Line("x < 1", "x < 2"),)).to_html()
    assert '<td class="old">x &lt; <b>1</b></td><td class="new">x &lt; <b>2</b></td>' in page


def test_lines_far_from_a_change_are_left_out() -> None:
    lines = [Line(f"line {number}", f"line {number}") for number in range(20)]
    lines[5], lines[6], lines[15] = Line("a", "b"), Line("c", None), Line(None, "d")
    assert str(Diff((), tuple(lines))) == (
        "modules: 0 of 0 changed\ncode: 3 of 20 lines changed\n"
        "  line 3\n  line 4\n- a\n- c\n+ b\n  line 7\n  line 8\n  ...\n"
        "  line 13\n  line 14\n+ d\n  line 16\n  line 17"
    )


def test_a_network_cropped_before_training() -> None:
    result = fp.precrop(Classifier(), torch.randn(2, 3, 4, 4), budget=fp.Budget(params=0.6))
    assert "conv1: Conv2d(3, 8) -> Conv2d(3, 4)" in str(result.diff())
