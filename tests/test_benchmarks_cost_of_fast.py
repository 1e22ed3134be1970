"""What the benchmark of the cost of `fast` measures and writes; its networks are real ones, which may not be here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks import cost_of_fast
from benchmarks.cost_of_fast import Cost
from tests.networks import build, images


def test_the_table_counts_in_dense_forwards() -> None:
    lines = "\n".join(cost_of_fast.table([Cost("cifar10_resnet20", 1024, dense=0.5, fast=4.5, half=3.0)])).splitlines()
    assert lines[2] == "| ResNet-20, CIFAR-10 | 1,024 | 0.50 s | 4.5 s | **9.0** | 3.0 |"


def test_a_network_is_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    prune = cost_of_fast.prune
    monkeypatch.setattr(cost_of_fast, "build", lambda network: build("Plain"))
    monkeypatch.setattr(cost_of_fast, "calibration", lambda network, draw: images(64))

    def counted(model: nn.Module, x: Tensor, share: float) -> None:
        seen.append(len(x))
        prune(model, x, share)

    monkeypatch.setattr(cost_of_fast, "prune", counted)
    cost = cost_of_fast.measure("any", share=0.7, turns=2)
    assert seen == [32, 64, 32, 64, 32]
    assert cost.images == 64 and 0 < cost.dense < cost.fast and cost.constant >= 0
    assert torch.is_grad_enabled()
