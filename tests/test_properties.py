"""Random small networks: whatever the analysis lets go must go exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune as fp
from tests.networks import images, random_plan, randomized

Step = tuple[str, Any]
STEPS = st.one_of(
    st.tuples(st.just("conv"), st.tuples(st.sampled_from([4, 8, 12]), st.sampled_from([1, 2, 4]))),
    st.tuples(st.just("residual"), st.sampled_from([3, 5])),
    st.tuples(st.just("concat"), st.sampled_from([2, 4])),
    st.tuples(st.just("depthwise"), st.sampled_from([1, 2])),
    st.tuples(st.sampled_from(["halves", "gate", "shuffle", "excite", "last", "normalize"]), st.none()),
)


class Random(nn.Module):
    """A network of drawn steps; every step keeps at least four channels, a multiple of four."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.stem, self.steps, channels = nn.Conv2d(3, 8, 3, padding=1), steps, 8
        self.layers = nn.ModuleList()
        for kind, option in steps:
            layers, channels = LAYERS[kind](channels, option)
            self.layers.append(nn.ModuleList(layers))
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for (kind, _), layers in zip(self.steps, self.layers, strict=True):
            x = FORWARDS[kind](x, *layers)  # type: ignore[misc]
        return self.head(x.mean((2, 3)))


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups), nn.BatchNorm2d(outputs), nn.ReLU())


def shuffled(x: Tensor) -> Tensor:
    return x.reshape(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


LAYERS: dict[str, Any] = {
    "conv": lambda c, o: ([conv(c, o[0], o[1])], o[0]),
    "residual": lambda c, o: ([conv(c, o), conv(o, c)], c),
    "concat": lambda c, o: ([conv(c, 2 * o)], c + 2 * o) if (c + 2 * o) % 4 == 0 else ([conv(c, 4)], c + 4),
    "depthwise": lambda c, o: ([conv(c, o * c, c)], o * c),
    "halves": lambda c, _: ([conv(c // 2, c // 2)], c),
    "gate": lambda c, _: ([conv(c, 2 * c)], c),
    "shuffle": lambda c, _: ([], c),
    "excite": lambda c, _: ([nn.Linear(c, 3), nn.Linear(3, c)], c),
    "last": lambda c, _: ([nn.Linear(c, c)], c),
    "normalize": lambda c, _: ([nn.GroupNorm(2, c)], c),
}
FORWARDS: dict[str, Any] = {
    "conv": lambda x, f: f(x),
    "residual": lambda x, f, g: F.relu(x + g(f(x))),
    "concat": lambda x, f: torch.cat([x, f(x)], 1),
    "depthwise": lambda x, f: f(x),
    "halves": lambda x, f: torch.cat([x[:, : x.shape[1] // 2], f(x.chunk(2, 1)[1])], 1),
    "gate": lambda x, f: torch.mul(*f(x).chunk(2, 1)),
    "shuffle": lambda x: shuffled(x),
    "excite": lambda x, f, g: x * torch.sigmoid(g(F.relu(f(x.mean((2, 3))))))[:, :, None, None],
    "last": lambda x, f: F.gelu(f(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
    "normalize": lambda x, f: f(x),
}


def check(steps: list[Step], seed: int) -> None:
    torch.manual_seed(seed)
    model = randomized(Random(steps)).eval()
    gm = fp.capture(model, images(size=4))
    coupling = fp.analyze(gm)
    assert coupling.groups
    plan = random_plan(coupling, seed)
    small = fp.shrink(gm, plan)
    proof = fp.verify(gm, small, plan)
    assert proof.ok, proof
    costs = fp.cost(gm, coupling)
    widths = {name: len(units) for name, units in plan.kept.items()}
    assert costs.evaluate(widths)["params"] == sum(parameter.numel() for parameter in small.parameters())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(STEPS, min_size=1, max_size=4), st.integers(0, 2**16))
def test_random_networks_shrink_exactly(steps: list[Step], seed: int) -> None:
    check(steps, seed)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=1, max_size=6), st.integers(0, 2**16))
def test_many_random_networks_shrink_exactly(steps: list[Step], seed: int) -> None:
    check(steps, seed)
