"""Layers: which weights the objective runs over, and what is left of them at given widths."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import fxprune as fp
from benchmarks.precrop_networks import ResNet20
from fxprune.widths import layers_of
from tests.networks import NETWORKS, build, images, random_plan


def test_resnet20_has_the_layers_of_the_paper() -> None:
    gm = fp.capture(ResNet20(), torch.zeros(1, 3, 32, 32))
    layers = layers_of(gm, fp.analyze(gm))
    assert [layer.name for layer in layers] == [
        name for name, module in gm.named_parameters() if "conv" in name and module.ndim == 4
    ]
    assert sum(layer.weights for layer in layers) == 267_696


def test_a_depthwise_layer_follows_one_group_and_a_shared_axis_its_shares() -> None:
    gm = fp.capture(torchvision.models.mobilenet_v2(), torch.zeros(1, 3, 32, 32))
    layers = {layer.name: layer for layer in layers_of(gm, fp.analyze(gm))}
    assert len(layers) == 52
    depthwise = layers["features.2.conv.1.0.weight"]
    assert [dict(side) for side in depthwise.sides] == [{"features.2.conv.0.0.weight": 1.0}]
    gm = fp.capture(build("Dense"), images())
    shared = [side for layer in layers_of(gm, fp.analyze(gm)) for side in layer.sides if len(side) > 1]
    assert shared
    assert all(sum(side.values()) == pytest.approx(1) for side in shared)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_density_is_the_share_of_the_elements_that_a_plan_leaves(name: str) -> None:
    gm = fp.capture(build(name), images())
    coupling = fp.analyze(gm)
    plan = random_plan(coupling, seed=3)
    small = fp.shrink(gm, plan)
    kept = {group: len(units) / coupling.by_name[group].width for group, units in plan.kept.items()}
    for layer in layers_of(gm, coupling):
        left = small.get_parameter(layer.name).numel() / layer.weights
        assert layer.density(kept) == pytest.approx(left), layer.name
        assert sum(layer.slopes.values()) <= 2 + 1e-9


def test_a_weight_that_two_calls_share_is_passed_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.shared(self.shared(self.stem(x)).relu()))

    gm = fp.capture(Twice(), images())
    layers = {layer.name: len(layer.calls) for layer in layers_of(gm, fp.analyze(gm))}
    assert layers == {"stem.weight": 1, "shared.weight": 2}


def test_a_tied_weight_goes_by_its_first_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.first(x).relu()))

    gm = fp.capture(Tied(), images())
    layers = {layer.name: len(layer.calls) for layer in layers_of(gm, fp.analyze(gm))}
    assert layers == {"first.weight": 2}


def test_a_network_of_one_layer_has_that_layer() -> None:
    gm = fp.capture(nn.Linear(3, 4), torch.zeros(2, 3))
    assert [layer.name for layer in layers_of(gm, fp.analyze(gm))] == ["weight"]


def test_networks_without_convolutions_have_their_linear_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    gm = fp.capture(model, torch.zeros(2, 3))
    assert [layer.name for layer in layers_of(gm, fp.analyze(gm))] == ["0.weight", "2.weight"]
