"""The roofline: from times at some widths to a polynomial in all of them."""

from __future__ import annotations

import torch
from torch import nn

import fxprune as fp
from fxprune.latency import Clock, Latencies, Roofline, Sample, Timing


def network() -> tuple[torch.fx.GraphModule, fp.Coupling, fp.Cost]:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3))
    gm = fp.capture(model.eval(), torch.randn(2, 3, 8, 8))
    coupling = fp.analyze(gm)
    return gm, coupling, fp.cost(gm, coupling)


def linear(widths: dict[str, int]) -> dict[str, float]:
    """Seconds in which each convolution is as fast for a FLOP, each ReLU for a byte, and every call costs a little."""
    first, second = widths.get("0.weight", 16), widths.get("2.weight", 32)
    return {
        "submod_conv2d": 1e-6 + 2e-9 * (2 * 27 * first * 36),
        "submod_relu": 1e-6 + 1e-9 * (4 * first * 36),
        "submod_conv2d_1": 1e-6 + 2e-9 * (2 * 9 * first * second * 16),
        "submod_relu_1": 1e-6 + 1e-9 * (4 * second * 16),
        "submod_conv2d_2": 1e-6 + 2e-9 * (2 * 9 * 4 * second * 4),
    }


def test_times_that_follow_the_model_are_found_again_at_widths_never_seen() -> None:
    gm, coupling, cost = network()
    widths = [{}, {"0.weight": 8}, {"2.weight": 8}, {"0.weight": 8, "2.weight": 16}, {"0.weight": 4, "2.weight": 24}]
    found = Latencies("here", 2.0, tuple(Sample(at, linear(at)) for at in widths))
    fitted = Roofline(gm, coupling, cost, fused=False).fitted(found)
    unseen = {"0.weight": 12, "2.weight": 20}
    values = {cost.symbols[name]: width for name, width in unseen.items()}
    expected = 2e9 * sum(linear(unseen).values())
    assert abs(float(fitted.subs(values)) / expected - 1) < 1e-6


def test_what_takes_longer_the_narrower_it_is_never_becomes_a_negative_factor() -> None:
    gm, coupling, cost = network()
    samples = [Sample({"0.weight": width}, dict.fromkeys(linear({}), 1.0 / width)) for width in (4, 8, 16)]
    fitted = Roofline(gm, coupling, cost, fused=False).fitted(Latencies("here", 1.0, tuple(samples)))
    assert all(coefficient >= 0 for coefficient in fitted.as_poly(*cost.symbols.values()).coeffs())


def test_a_weighty_sample_is_met() -> None:
    gm, coupling, cost = network()
    odd = {name: 3 * seconds for name, seconds in linear({"0.weight": 8}).items()}
    samples = (
        Sample({}, linear({})),
        Sample({"0.weight": 8}, odd, 1e8),
        Sample({"2.weight": 8}, linear({"2.weight": 8})),
    )
    fitted = Roofline(gm, coupling, cost, fused=False).fitted(Latencies("here", 1.0, samples))
    values = {cost.symbols["0.weight"]: 8, cost.symbols["2.weight"]: 32}
    assert abs(float(fitted.subs(values)) / (1e9 * sum(odd.values())) - 1) < 1e-3


def test_what_is_reported_is_what_was_measured_of_the_original_and_of_the_plan() -> None:
    gm, coupling, cost = network()
    plan = {"0.weight": 8, "2.weight": 24}
    samples = (Sample({}, linear({})), Sample({"0.weight": 4}, linear({"0.weight": 4})), Sample(plan, linear(plan)))
    slower = samples[2]._replace(seconds={name: 0.9 * seconds for name, seconds in linear({}).items()})
    noise = [Sample({"0.weight": w, "2.weight": w}, dict.fromkeys(linear({}), 1.0 / w), 1e6) for w in (4, 8)]
    for found in (samples, (*samples[:2], slower), (samples[0], *noise, slower)):  # the last fit is a constant
        latencies = Latencies("here", 2.0, found)
        measured = Roofline(gm, coupling, cost, fused=False).measured(latencies)
        for sample in (found[0], found[-1]):
            values = {cost.symbols[name]: sample.widths.get(name, width) for name, width in cost.widths.items()}
            assert abs(float(measured.subs(values)) / latencies.nanoseconds(sample) - 1) < 1e-9


def test_the_pieces_that_are_measured_are_those_that_are_fitted(tmp_path: object) -> None:
    gm, coupling, cost = network()
    measured = Clock(gm, Timing(table=f"{tmp_path}/latency.json")).measure(gm)
    found = Latencies("here", 1.0, (Sample({}, measured.pieces),))
    fitted = Roofline(gm, coupling, cost, fused=False).fitted(found)
    dense = {cost.symbols[name]: width for name, width in cost.widths.items()}
    assert abs(float(fitted.subs(dense)) / (1e9 * sum(measured.pieces.values())) - 1) < 1e-6


def test_what_was_measured_survives_json() -> None:
    found = Latencies("here", 1.25, (Sample({"0.weight": 8}, {"submod_conv2d": 1e-6}, 10.0),))
    assert Latencies.from_json(found.to_json()) == found
