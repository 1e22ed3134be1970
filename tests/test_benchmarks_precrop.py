"""What the training of cropped networks is made with, and what is written of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import precrop, precrop_masks, precrop_table, precrop_widths
from benchmarks.accuracy_data import flops
from benchmarks.accuracy_records import append
from benchmarks.precrop import Run, limits_of, made, measure, runs
from benchmarks.precrop_networks import NETWORKS, MobileNetV2, ResNet20
from benchmarks.precrop_training import Float32, MixedPrecision, fit
from fxprune.report import GroupChange, Report

IMAGE = torch.zeros(1, 3, 32, 32)


def options(results: Path = Path("none"), **more: Any) -> argparse.Namespace:
    usual = {"results": results, "only": ["*"], "seeds": [0, 1, 2], "all": False, "resume": True, "epochs": 20}
    return argparse.Namespace(**{**usual, "device": "cpu", "test_limit": None, **more})


def record(method: str, top1: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    fixed = {"network": "resnet20", "budget": "params=0.5", "params": 135000, "flops": 40_000_000, "seconds": 100.0}
    return {**fixed, "method": method, "seed": seed, "top1": top1, "epochs": 20, "where": "here", **more}


# ---------------------------------------------------------------- networks and recipe


@pytest.mark.parametrize(
    ("network", "parameters", "count"), [(ResNet20, 269_722, 81_102_080), (MobileNetV2, 587_178, 23_360_000)]
)
def test_networks_have_their_known_size(network: type[nn.Module], parameters: int, count: int) -> None:
    model = network().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert flops(model, IMAGE) == count
    assert model(IMAGE).shape == (1, 10)


def test_mixed_precision_changes_little_and_keeps_depthwise_convolutions_exact() -> None:
    model, images = MobileNetV2().eval(), torch.randn(4, 3, 32, 32)
    exact = model(images)
    mixed = MixedPrecision(model)
    assert sum(isinstance(layer, Float32) for layer in model.modules()) == sum(n for _, _, n, _ in model.STAGES)
    found = mixed(images)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(model(images), exact)  # outside of it the network computes as ever


def test_budgets_are_read_from_their_names() -> None:
    assert limits_of("params=0.25") == {"params": 0.25}
    assert limits_of("params=0.5,flops=0.5") == {"params": 0.5, "flops": 0.5}
    assert precrop_table.share_of("params=0.5,flops=0.25") == "50 % of the parameters and 25 % of the FLOPs"


@pytest.mark.parametrize("method", ["precrop", "uniform", "preconfig"])
def test_what_is_trained_keeps_to_its_budget(method: str) -> None:
    dense = ResNet20()
    model, notes = made(ResNet20(), Run("resnet20", "params=0.5", method, 0))
    assert model.training
    assert 0.48 < sum(one.numel() for one in model.parameters()) / 269_722 <= 0.5
    assert flops(model.eval(), IMAGE) <= flops(dense.eval(), IMAGE)
    assert (notes["widths"]["conv1.weight"] > 16) == (method == "preconfig")
    assert notes["objective"] < 0


# ---------------------------------------------------------------- granularities


@pytest.mark.parametrize("budget", precrop_masks.KEPT)
def test_all_granularities_have_the_same_densities(budget: str) -> None:
    found = []
    for method in precrop_masks.GRANULARITIES:
        model = ResNet20()
        left = precrop_masks.mask(model, method, budget, seed=0)
        masks = {name: mask for name, mask in model.named_buffers() if name.endswith("weight_mask")}
        assert left == 269_722 - sum(int((mask == 0).sum()) for mask in masks.values())
        found.append({name: float(mask.mean()) for name, mask in masks.items()})
    assert len(found[0]) == 18
    for densities in found[1:]:
        assert densities == pytest.approx(found[0], abs=0.001)
    assert found[0]["layer3.1.conv1.weight_mask"] == pytest.approx(
        {"params=0.5": 0.31, "params=0.25": 0.12}[budget], abs=0.01
    )


def test_masks_are_of_weights_of_kernels_and_of_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    channels = precrop_masks.Channels(torch.tensor([1.0, 0, 1, 1]), torch.tensor([1.0, 1, 0]))
    masks = [make(channels, (4, 3, 3, 3), generator) for make in precrop_masks.GRANULARITIES.values()]
    kernels = [mask.flatten(2).sum(2) for mask in masks]
    assert [int(mask.sum()) for mask in masks] == [54, 54, 54]
    assert [bool(((found == 0) | (found == 9)).all()) for found in kernels] == [False, True, True]
    assert kernels[2].tolist() == [[9, 9, 0], [0, 0, 0], [9, 9, 0], [9, 9, 0]]


def test_masked_weights_stay_zero_in_training() -> None:
    model = ResNet20()
    precrop_masks.mask(model, "mask-filters", "params=0.25", seed=0)
    layer: Any = model.get_submodule("layer3.2.conv2")
    before, dead = layer.weight.clone(), layer.weight_mask == 0
    fit(model, (torch.randn(8, 3, 32, 32), torch.arange(8)), epochs=1, seed=0, rate=0.1)
    model(IMAGE)
    assert bool((layer.weight[dead] == 0).all())
    assert not torch.equal(layer.weight, before)


# ---------------------------------------------------------------- what is run


def test_what_matters_most_is_run_first() -> None:
    found = [tuple(run) for run in runs(options())]
    assert found[0] == ("resnet20", "params=0.5", "precrop", 0)
    assert found[10] == ("resnet20", "dense", "dense", 0)
    assert found[11] == ("resnet20", "params=0.5", "precrop", 1)
    assert found[33] == ("resnet20", "params=0.5", "mask-weights", 0)
    assert found[-1] == ("mobilenet_v2", "dense", "dense", 2)
    assert len(found) == len(set(found)) == 3 * (11 + 3 + 6)
    more = {run.method for run in runs(options(all=True))} - {run.method for run in runs(options())}
    assert more == {"snip", "grasp", "random"}


def test_what_is_known_is_not_run_again(tmp_path: Path) -> None:
    here = options(tmp_path / "results.jsonl", only=["resnet20/*/precrop"], seeds=[0])
    first, second = runs(here)
    append(here.results, record(first.method, 80.0))
    assert list(runs(here)) == [second]
    assert list(runs(options(here.results, only=here.only, seeds=[0], epochs=160))) == [first, second]


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"nothing matches resnet18/\*; there are: resnet20/params=0.5/precrop, "):
        list(runs(options(only=["resnet18/*"])))


# ---------------------------------------------------------------- from images to the table


def test_a_crop_is_trained_and_tested_and_written(data: Path) -> None:
    assert data.is_dir()
    run = Run("resnet20", "params=0.25", "precrop", 0)
    found = measure(run, options(epochs=1, test_limit=64)) | {"where": "here"}
    assert (found["network"], found["method"], found["epochs"]) == ("resnet20", "precrop", 1)
    assert 0 <= found["top1"] <= 100
    assert found["params"] <= 0.25 * 269_722
    lines = list(precrop_table.page([found]))
    assert lines[0] == "### ResNet-20, 25 % of the parameters, 1 epochs"
    assert lines[4].startswith("| **fxprune, PreCrop** | 0.067 M | ")


def test_table_is_stable_text() -> None:
    records = [
        record("dense", 82.0, budget="dense", params=270_000, flops=80_000_000),
        record("precrop", 80.0, objective=-6.7),
        record("precrop", 81.0, seed=1, objective=-6.7),
        record("uniform", 79.0, objective=-12.7),
        record("uniform", 79.5, seed=1, objective=-12.7),
        record("mask-weights", 79.0),
        record("mask-channels", 79.25),
    ]
    assert "\n".join(precrop_table.page(records)) == (
        "### ResNet-20, 50 % of the parameters, 20 epochs\n"
        "\n"
        "|  | parameters | FLOPs | log density | top-1 | beside uniform width | seeds |\n"
        "|---|---|---|---|---|---|---|\n"
        "| dense | 0.270 M (100.0 %) | 80.000 M (100.0 %) |  | 82.00 | +3.00 | 1 |\n"
        "| **fxprune, PreCrop** | 0.135 M (50.0 %) | 40.000 M (50.0 %) | -6.70 | 80.50 ± 0.71 | +1.25 | 2 |\n"
        "| uniform width | 0.135 M (50.0 %) | 40.000 M (50.0 %) | -12.70 | 79.25 ± 0.35 |  | 2 |\n"
        "\n"
        "### ResNet-20, the densities of 50 % of the parameters, at three granularities, 20 epochs\n"
        "\n"
        "|  | parameters | top-1 | beside single weights | seeds |\n"
        "|---|---|---|---|---|\n"
        "| dense | 0.270 M (100.0 %) | 82.00 | +3.00 | 1 |\n"
        "| single weights | 0.135 M (50.0 %) | 79.00 |  | 1 |\n"
        "| channels | 0.135 M (50.0 %) | 79.25 | +0.25 | 1 |\n"
        "\n"
        "Measured on here, with `python -m benchmarks.precrop --write`."
    )


def test_widths_stand_beside_those_of_the_paper() -> None:
    case = precrop_widths.CASES[2]
    assert case.budget.flops == pytest.approx(0.636, abs=0.001)
    assert case.budget.params == pytest.approx(0.527, abs=0.001)
    report = Report(
        before={"flops": 600_000_000, "params": 3_500_000},
        after={"flops": 381_000_000, "params": 1_840_000},
        budget={},
        groups=(GroupChange("stem", 32, 25, ()), GroupChange("block", 16, 10, ())),
        objective={"whole widths": -15.5, "channels": -14.4},
    )
    lines = list(precrop_widths.table([(case, report)]))
    assert lines[1] == (
        "| MobileNetV2 | 0.21 of 0.33 | 1.85 of 3.51 | 0.191 of 0.300 | 1.84 of 3.50 | 63.5 %, 63.6 % | "
        "52.6 %, 52.7 % | -15.500 | -14.400 |"
    )
    assert lines[5] == "- MobileNetV2 at 0.21 G: 25/32 10/16"


def test_every_network_is_trained_at_a_budget_that_the_table_names() -> None:
    for network in NETWORKS.values():
        for budget in network.budgets:
            assert precrop_table.share_of(budget)
    assert set(precrop_masks.KEPT) <= set(NETWORKS["resnet20"].budgets)
    assert precrop_masks.GRANULARITIES.keys() == precrop_table.MASKS.keys()
    assert precrop.RESULTS.name == "precrop.jsonl"
