"""Cost: polynomials in the widths, equal to FlopCounterMode and numel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sympy
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

import fxprune as fp
from tests.networks import NETWORKS, build, images, random_plan


@pytest.mark.parametrize("name", [*NETWORKS, "resnet18", "squeezenet1_1", "mobilenet_v3_small", "googlenet"])
def test_cost_of_the_original(name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    model = build(name) if name in NETWORKS else torchvision.models.get_model(name, weights=None, **options).eval()
    x = images(1) if name in NETWORKS else torch.randn(1, 3, 64, 64)
    gm = fp.capture(model, x)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    params = sum(parameter.numel() for parameter in model.parameters())
    assert fp.cost(gm, fp.analyze(gm)).evaluate() == {"flops": counter.get_total_flops(), "params": params}


def test_cost_is_a_polynomial_in_the_widths() -> None:
    gm = fp.capture(build("Residual"), images())
    cost = fp.cost(gm, fp.analyze(gm))
    stem, inner = cost.symbols["stem.0.weight"], cost.symbols["conv1.0.weight"]
    pixels = 2 * 8 * 8
    assert sympy.expand(cost.flops) == pixels * (27 * stem + 18 * stem * inner) + 6 * stem
    assert sympy.expand(cost.params) == 27 * stem + 18 * stem * inner + 4 * stem + 2 * inner + 3 * stem + 3
    assert set(cost.by_node) == {"conv2d", "conv2d_1", "conv2d_2", "linear"}


@pytest.mark.parametrize("name", NETWORKS)
def test_many_networks_at_once_cost_what_each_costs(name: str) -> None:
    gm = fp.capture(build(name), images())
    cost = fp.cost(gm, fp.analyze(gm))
    generator = np.random.default_rng(0)
    widths = {group: generator.integers(1, width + 1, size=(2, 3)) for group, width in cost.widths.items()}
    if len(widths) > 1:
        widths.pop(next(iter(widths)))  # a group that is left out is whole
    many = cost.evaluate_many(widths)
    for place in np.ndindex(2, 3):
        one = cost.evaluate({group: int(width[place]) for group, width in widths.items()})
        assert {kind: int(count[place]) for kind, count in many.items()} == one


class Bytes(torch.fx.Interpreter):
    """Adds up the bytes of what a run computes into memory of its own; a reshape counts as none, though it may copy."""

    def __init__(self, gm: torch.fx.GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.total, self.seen = 0, set[int]()

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        for tensor in value if isinstance(value, tuple | list) else (value,):
            if isinstance(tensor, torch.Tensor) and n.op in ("placeholder", "call_function"):
                place = tensor.untyped_storage().data_ptr()
                if place not in self.seen and not getattr(n.target, "is_view", False):
                    self.total += tensor.numel() * tensor.element_size()
                self.seen.add(place)
        return value


@pytest.mark.parametrize("name", NETWORKS)
def test_memory_is_what_a_run_on_one_input_computes(name: str) -> None:
    gm = fp.capture(build(name), images())
    coupling = fp.analyze(gm)
    plan = random_plan(coupling, seed=1)
    small = fp.shrink(gm, plan)
    cost = fp.cost(gm, coupling)
    kept = plan.counts
    for network, widths in ((gm, {}), (small, kept)):
        run = Bytes(network)
        with torch.no_grad():
            run.run(images(1), enable_io_processing=False)
        assert cost.evaluate(widths, ("memory",))["memory"] == run.total


def test_a_cost_as_a_posynomial() -> None:
    gm = fp.capture(build("Residual"), images())
    cost = fp.cost(gm, fp.analyze(gm))
    widths = np.array([cost.widths[name] for name in cost.symbols], dtype=np.float64)
    for kind in ("flops", "params", "memory"):
        factors, exponents = cost.terms(kind)
        assert (factors > 0).all()
        assert (factors * (widths**exponents).prod(1)).sum() == cost.evaluate(kinds=(kind,))[kind]


def test_costs_at_widths_that_are_not_whole_are_not_rounded() -> None:
    gm = fp.capture(build("Residual"), images())
    cost = fp.cost(gm, fp.analyze(gm))
    low, middle, high = (cost.at({"conv1.0.weight": width})["params"] for width in (3, 3.25, 4))
    assert middle == pytest.approx(low + (high - low) / 4)
    assert middle != round(middle)


def test_tied_parameters_count_once() -> None:
    model = build("Tied")
    gm = fp.capture(model, images())
    assert fp.cost(gm, fp.analyze(gm)).evaluate()["params"] == sum(p.numel() for p in model.parameters())
