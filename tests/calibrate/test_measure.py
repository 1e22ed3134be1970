"""Measured removals: what no contraction reads is set to zero, and the error is that of the outputs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.calibrate.images import calibration_for
from fxprune.calibrate.measure import measured
from fxprune.calibrate.observe import observe, systems_of
from fxprune.capture import capture
from fxprune.coupling import analyze
from fxprune.importance import magnitude, second_order
from fxprune.passes.choose import tensors_of


class Attending(nn.Module):
    """Queries and keys, which only their product reads, and an LSTM, which is no contraction."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))
        self.rnn, self.head = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unsqueeze(1) for layer in (self.q, self.k, self.v))
        return self.head(self.rnn(F.scaled_dot_product_attention(3 * q, k, v)[:, 0])[0])


@pytest.fixture
def model() -> Attending:
    model = Attending().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.7)
    return model


def error(model: Attending, x: Tensor, gone: dict[str, tuple[int, Tensor]]) -> float:
    """The squared error of the outputs over their variance when slices of parameters are zero."""
    cut = copy.deepcopy(model)
    with torch.no_grad():
        for name, (dim, units) in gone.items():
            cut.get_parameter(name).index_fill_(dim, units, 0)
        wanted = model(x)
        rows = wanted.flatten(1)
        variance = (rows - rows.mean(1, keepdim=True)).square().sum()
        return float((cut(x) - wanted).square().sum() / variance)


def test_queries_and_keys_and_inputs_of_an_lstm_are_measured_as_zeros(model: Attending) -> None:
    x = torch.randn(32, 4, 6)
    gm = capture(model, x)
    coupling = analyze(gm)
    by_name = coupling.by_name
    tensors = tensors_of(gm)
    removals = {group.name: magnitude(group, tensors, ()) for group in coupling.groups}
    calibration = calibration_for(gm, x, held_out=0)
    found = measured(gm, coupling, removals, {}, calibration, shares=(0.5,))
    assert set(by_name) >= {"q.weight", "v.weight"}
    queries = torch.tensor(removals["q.weight"].order[:4])
    rows = dict.fromkeys(("q.weight", "q.bias", "k.weight", "k.bias"), (0, queries))
    assert found["q.weight"].errors[4] == pytest.approx(error(model, x, rows), rel=1e-4)
    values = torch.tensor(removals["v.weight"].order[:4])
    assert found["v.weight"].errors[4] == pytest.approx(error(model, x, {"rnn.weight_ih_l0": (1, values)}), rel=1e-4)


def test_the_whole_path_scores_what_no_map_reads(model: Attending) -> None:
    x = torch.randn(32, 4, 6)
    gm = capture(model, x)
    coupling = analyze(gm)
    calibration = calibration_for(gm, x, held_out=0)
    seen = observe(gm, coupling, calibration)
    assert set(seen) == {"head.weight"}
    tensors = tensors_of(gm)
    removals = {
        group.name: second_order(group, tensors, systems_of(group, coupling, seen, gm)) for group in coupling.groups
    }
    for group in coupling.groups:
        errors = measured(gm, coupling, removals, seen, calibration)[group.name].errors
        assert list(errors) == sorted(errors) and errors[-1] > 0
