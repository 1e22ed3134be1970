"""The drawing of the coupling."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

import fxprune as fp
from fxprune.drawing import coupling_graph, draw
from fxprune.types import Coupling

SVG = "{http://www.w3.org/2000/svg}"


class Residual(nn.Module):
    """Two groups, each of which reads the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.inner = nn.Conv2d(8, 16, 1)
        self.outer = nn.Conv2d(16, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.outer(self.inner(x).relu()))


def coupling(network: nn.Module, side: int = 8) -> Coupling:
    return fp.analyze(fp.capture(network.eval(), torch.randn(2, 3, side, side)))


def rectangles(picture: str) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right and bottom of each box, by the text in it."""
    found = {}
    for group in ElementTree.fromstring(picture).iter(f"{SVG}g"):
        box, label = group.find(f"{SVG}rect"), group.find(f"{SVG}text")
        if box is not None and label is not None:
            x, y, width, height = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
            found[label.text or ""] = (x, y, x + width, y + height)
    return found


def arrows(picture: str) -> dict[str, str]:
    """The class of the arrow of each tensor."""
    root = ElementTree.fromstring(picture)
    return {
        (group.findtext(f"{SVG}title") or ""): path.attrib["class"]
        for group in root.iter(f"{SVG}g")
        if (path := group.find(f"{SVG}path")) is not None
    }


def test_an_edge_for_each_tensor_between_two_groups() -> None:
    graph = coupling_graph(coupling(Residual()))
    assert dict(graph.nodes(data="width")) == {"stem.weight": 8, "inner.weight": 16}
    assert list(graph.edges(data="param")) == [
        ("stem.weight", "inner.weight", "inner.weight"),
        ("inner.weight", "stem.weight", "outer.weight"),
    ]


def test_groups_are_boxes_and_tensors_arrows_those_back_dashed() -> None:
    picture = draw(coupling(Residual()))
    boxes = rectangles(picture)
    assert set(boxes) == {"stem", "inner"}
    assert boxes["stem"][3] < boxes["inner"][1]
    assert arrows(picture) == {"inner.weight": "way", "outer.weight": "back"}
    assert "\u2192" not in picture


def test_a_plan_is_shown_in_the_boxes() -> None:
    picture = draw(coupling(Residual()), fp.Plan({"inner.weight": range(4)}))
    root = ElementTree.fromstring(picture)
    assert [text.text for text in root.iter(f"{SVG}text")] == ["stem", "8 \u2192 8", "inner", "16 \u2192 4"]
    bars = [float(bar.attrib["width"]) for bar in root.iter(f"{SVG}rect") if bar.get("class") == "kept"]
    assert bars[1] == pytest.approx(bars[0] / 4, abs=0.1)


def test_it_says_in_words_what_it_shows() -> None:
    root = ElementTree.fromstring(draw(coupling(Residual())))
    assert root.attrib["role"] == "img"
    names = {element.attrib.get("id"): element.text for element in root}
    assert root.attrib["aria-labelledby"] == "coupling-title coupling-words"
    assert names["coupling-title"] == "2 groups of channels"
    assert names["coupling-words"] == "stem.weight, 8 units, to inner.weight; inner.weight, 16 units, to stem.weight"


def test_both_colour_schemes_and_nothing_from_outside() -> None:
    picture = draw(coupling(Residual()))
    assert "prefers-color-scheme: dark" in picture
    assert re.findall(r"https?://[^\"]+", picture) == ["http://www.w3.org/2000/svg"]


def test_a_network_without_groups() -> None:
    picture = draw(coupling(nn.Conv2d(3, 4, 1)))
    assert rectangles(picture) == {}
    assert "0 groups of channels" in picture


@pytest.mark.parametrize(("network", "count"), [(resnet18, 12), (resnet50, 37)])
def test_boxes_of_a_deep_network_stand_apart_and_inside(network: type[nn.Module], count: int) -> None:
    picture = draw(coupling(network(), side=32))
    boxes = list(rectangles(picture).values())
    assert len(boxes) == count
    for index, (left, top, right, bottom) in enumerate(boxes):
        for other_left, other_top, other_right, other_bottom in boxes[:index]:
            assert right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top
    _, _, width, height = map(float, ElementTree.fromstring(picture).attrib["viewBox"].split())
    assert all(left >= 0 and right <= width and top >= 0 and bottom <= height for left, top, right, bottom in boxes)
    assert width <= 960, "as wide as the report"


def test_long_arrows_pass_beside_the_boxes() -> None:
    picture = draw(coupling(resnet50(), side=32))
    boxes = rectangles(picture).values()
    lanes = [
        (float(x), *sorted((float(start), float(stop))))
        for x, start, stop in re.findall(r"([\d.]+) ([\d.]+)V([\d.]+)C", picture)
    ]
    assert len(lanes) == 1 + 3 + 12  # past the first block; from stage to stage; back from the second convolutions
    for x, top, bottom in lanes:
        assert not any(left < x < right and top < low and high < bottom for left, high, right, low in boxes)


def test_wide_layers_are_broken_and_long_names_shortened() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            branches = [nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)) for _ in range(20)]
            self.branches_with_a_long_name = nn.ModuleList(branches)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return torch.stack([branch(x) for branch in self.branches_with_a_long_name]).sum(0)

    picture = draw(coupling(Wide()))
    boxes = rectangles(picture)
    assert set(boxes) == {"stem", *(f"{index}.0" for index in range(20))}
    assert len({top for _, top, _, _ in boxes.values()}) == 4
    assert "<title>branches_with_a_long_name.3.0.weight: 4 units</title>" in picture
