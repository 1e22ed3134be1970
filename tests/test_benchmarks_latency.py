"""What the latency benchmark writes, and that all forms are timed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks import latency


def record(**more: Any) -> dict[str, Any]:
    run = {"network": "resnet50", "share": 0.58, "mode": "compiled", "batch": 32, "device": "a GPU, torch 3"}
    forms = {
        "dense": {"flops": 1000, "milliseconds": 50.0},
        "any": {"flops": 580, "milliseconds": 40.0},
        "sixteen": {"flops": 575, "milliseconds": 31.5},
        "latency": {"flops": 500, "milliseconds": 29.0},
    }
    return {**run, **forms, "foretold": 0.579, **more}


def test_the_page_says_how_much_of_the_saving_is_saved_in_time() -> None:
    lines = list(latency.page([record()]))
    begin = "| ResNet-50 | compiled | 32 |"
    assert lines[2] == f"{begin} FLOPs, any widths 58% | 58.0% | 80.0% | 48% | 50.0 ms | 40.0 ms |"
    assert lines[3] == f"{begin} FLOPs, multiples of 16 58% | 57.5% | 63.0% | 87% | 50.0 ms | 31.5 ms |"
    assert lines[4] == f"{begin} latency 58% (foretold 57.9%) | 50.0% | 58.0% | 84% | 50.0 ms | 29.0 ms |"
    assert lines[-1] == "Measured on a GPU, torch 3, with `python -m benchmarks.latency --write`."


def test_networks_come_in_their_order() -> None:
    lines = list(latency.page([record(network="mobilenet_v2"), record()]))
    assert [line.split(" | ")[0] for line in lines[2:8:3]] == ["| ResNet-50", "| MobileNetV2"]


def test_every_form_is_timed(monkeypatch: Any) -> None:
    monkeypatch.setattr(latency, "SHORTEST", 1e-3)
    forms: dict[str, nn.Module] = {"dense": nn.Conv2d(3, 8, 3), "pruned": nn.Conv2d(3, 4, 3)}
    found = latency.milliseconds(forms, torch.randn(2, 3, 8, 8), "eager")
    assert list(found) == ["dense", "pruned"] and min(found.values()) > 0
