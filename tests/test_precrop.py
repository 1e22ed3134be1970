"""precrop: from a network as its constructor makes it to one that trains, with other widths."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fxprune as fp
from benchmarks.precrop_networks import ResNet20
from fxprune.passes.verify import relative_error
from tests.networks import NETWORKS, images


class WithDropout(nn.Module):
    """A classifier whose training does more than its evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body, self.drop, self.head = nn.Conv2d(16, 12, 3), nn.Dropout(0.5), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.body(F.relu(self.norm(self.stem(x)))))
        return self.head(self.drop(x.mean((2, 3))))


def flops_of(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept_and_the_model_is_not_touched(training: bool) -> None:
    model = WithDropout().train(training)
    before = copy.deepcopy(model.state_dict())
    result = fp.precrop(model, images(), budget=fp.Budget(params=0.5))
    assert result.model.training is training
    assert all(module.training is training for module in result.model.modules())
    assert model.training is training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert list(result.model.state_dict()) == list(before)


def test_dropout_and_batch_norm_live() -> None:
    model = fp.precrop(WithDropout(), images(), budget=fp.Budget(params=0.5)).model
    x = images(8)
    assert not torch.equal(model(x), model(x))
    statistics = model.get_buffer("norm.running_mean").clone()
    model(x)
    assert not torch.equal(model.get_buffer("norm.running_mean"), statistics)
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_fits_and_trains(name: str, grow: bool) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    budget = fp.Budget(params=0.6, flops=0.9)
    result = fp.precrop(model, images(), budget=budget, grow=grow, reinitialise=True)
    assert sum(parameter.numel() for parameter in result.model.parameters()) <= 0.6 * sum(
        parameter.numel() for parameter in model.parameters()
    )
    assert flops_of(result.model, images(1)) <= 0.9 * flops_of(model, images(1))
    optimizer = torch.optim.SGD(result.model.parameters(), 0.05)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(result.model(images(6)), torch.arange(6) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_without_reinitialisation_the_weights_are_those_that_were_there() -> None:
    model = WithDropout()
    result = fp.precrop(model, images(), budget=fp.Budget(params=0.5), seed=3)
    twin = result.plan.apply(model)
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    assert type(twin) is WithDropout
    x = images(4)
    assert relative_error(result.model.eval()(x), twin.eval()(x)) < 1e-6


def test_reinitialisation_follows_the_modules_own_scheme_and_the_seed() -> None:
    model = WithDropout()
    nn.init.constant_(model.stem.weight, 7.0)
    runs = [
        fp.precrop(model, images(), budget=fp.Budget(params=0.5), reinitialise=True, seed=seed).model
        for seed in (0, 0, 1)
    ]
    bound = 1 / (3 * 9) ** 0.5  # of torch's own: uniform between +-1/sqrt(fan in)
    assert runs[0].get_parameter("stem.weight").abs().max() <= bound
    assert torch.equal(runs[0].get_parameter("stem.weight"), runs[1].get_parameter("stem.weight"))
    assert not torch.equal(runs[0].get_parameter("body.weight"), runs[2].get_parameter("body.weight"))


def test_the_report_tells_densities_and_that_units_do_not_matter() -> None:
    report = fp.precrop(ResNet20(), torch.zeros(1, 3, 32, 32), budget=fp.Budget(params=0.5)).report
    assert report.recipe == "precrop"
    assert len(report.densities) == 19
    by_name = {density.layer: density for density in report.densities}
    assert by_name["layer1.0.conv1.weight"].best == pytest.approx(1, abs=1e-4)
    assert by_name["layer3.1.conv2.weight"].best == pytest.approx(0.31, abs=0.01)
    assert report.objective["channels"] >= report.objective["whole widths"]
    assert "drawn with seed 0" in str(report)
    assert report.verification is not None
    assert report.verification.ok


def test_a_network_that_grows_has_no_oracle_and_the_report_says_so() -> None:
    budget = fp.Budget(params=0.5, flops=1.0)
    result = fp.precrop(ResNet20(), torch.zeros(1, 3, 32, 32), budget=budget, grow=True)
    assert any(group.after > group.before for group in result.report.groups)
    assert "not verified: a network that grows has no oracle" in str(result.report)
    assert result.report.after["flops"] <= result.report.before["flops"]


def test_stochastic_depth_is_named_and_applying_the_plan_keeps_it() -> None:
    model = torchvision.models.efficientnet_b0(num_classes=3)
    x = torch.randn(2, 3, 32, 32)
    result = fp.precrop(model, x, budget=fp.Budget(params=0.6), verify=False)
    assert any("stochastic depth" in note for note in result.report.notes)
    twin = result.plan.apply(model)
    assert type(twin) is type(model)
    assert not torch.equal(twin.train()(x), twin(x))


def test_heads_leave_whole() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=3)
    result = fp.precrop(model, torch.randn(2, 3, 32, 32), budget=fp.Budget(params=0.6), heads=True)
    assert result.plan.heads
    assert result.report.after["params"] <= 0.6 * result.report.before["params"]


def test_the_saved_network_trains_without_fxprune(tmp_path: Path) -> None:
    fp.precrop(WithDropout(), images(), budget=fp.Budget(params=0.5)).save(tmp_path / "out")
    script = """
import sys
sys.modules["fxprune"] = None
sys.path.insert(0, "out")
import torch, model
from safetensors.torch import load_file
network = model.WithDropout()
network.load_state_dict(load_file("out/model.safetensors"))
network.train()
network(torch.randn(4, 3, 8, 8)).sum().backward()
assert all(parameter.grad is not None for parameter in network.parameters())
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_several_limits_hold_at_once() -> None:
    model, x = ResNet20(), torch.zeros(1, 3, 32, 32)
    report = fp.precrop(model, x, budget=fp.Budget(flops=0.7, params=0.5, memory=0.8)).report
    for kind, limit in report.budget.items():
        assert report.after[kind] <= limit
    assert set(report.budget) == {"flops", "params", "memory"}


def test_limits_that_contradict_each_other_name_the_tightest() -> None:
    budget = fp.Budget(params=100, flops=0.9)
    with pytest.raises(fp.FxpruneError, match=r"params=100 cannot be reached: the smallest network has \d{3}; "):
        fp.precrop(ResNet20(), torch.zeros(1, 3, 32, 32), budget=budget)


@pytest.mark.parametrize("budget", [0.5, {"params": 0.5}, None])
def test_a_budget_is_a_budget(budget: Any) -> None:
    with pytest.raises(fp.FxpruneError, match="budget must be a Budget"):
        fp.precrop(WithDropout(), images(), budget=budget)
