"""Observations: covariances and sensitivities against brute force, the units behind each input, measured curves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.calibrate.contraction import contractions
from fxprune.calibrate.evaluate import attribute
from fxprune.calibrate.images import Calibration, calibration_for
from fxprune.calibrate.measure import measured
from fxprune.calibrate.observe import column_units, observe, systems_of
from fxprune.calibrate.room import bytes_per_image
from fxprune.calibrate.sampling import FEWEST_IMAGES, Sampling
from fxprune.capture import capture
from fxprune.coupling import analyze
from fxprune.importance import IMPORTANCES
from tests.networks import NETWORKS, build, images


class Two(nn.Module):
    """Two layers, so that every derivative can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def test_covariance_and_sensitivity_are_those_of_the_formulas() -> None:
    model = Two().double()
    x = torch.randn(200, 5, dtype=torch.float64)
    gm = capture(model, (x[:2],))
    calibration = calibration_for(gm, x, batch_size=50, held_out=0)
    seen = observe(gm, analyze(gm), calibration)["second.weight"]
    hidden = F.relu(model.first(x))
    torch.testing.assert_close(seen.covariance[0], torch.cov(hidden.mT, correction=0))
    torch.testing.assert_close(seen.mean[0], hidden.mean(0))
    torch.testing.assert_close(seen.weights[0], model.second.weight.mT)
    y = model(x)
    spread = (y - y.mean(1, keepdim=True)).square().sum(1).mean()
    # the gradient of a signed sum of the outputs is the signs: products are 1 on the diagonal, 0 beside
    torch.testing.assert_close(seen.sensitivity[0].diagonal().mean(), 1 / spread, rtol=0.1, atol=0)


def test_a_contraction_without_a_home_for_a_bias_is_seen_about_zero() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3, bias=False)).double()
    x = torch.randn(64, 5, dtype=torch.float64) + 3
    gm = capture(model, (x[:2],))
    seen = observe(gm, analyze(gm), calibration_for(gm, x, held_out=0))["1.weight"]
    hidden = model[0](x)
    torch.testing.assert_close(seen.covariance[0], hidden.mT @ hidden / 64)
    assert not seen.mean.any()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_input_has_the_unit_that_its_slices_name(name: str) -> None:
    gm = capture(build(name), (images(),))
    coupling = analyze(gm)
    for item in contractions(gm).values():
        weight = attribute(gm, item.weight)
        for group in coupling.groups:
            found = column_units(item, coupling, group, weight)
            expected = torch.full_like(found, -1)
            for unit in range(group.width):
                for part in group.slices(unit):
                    if part.param == item.weight and part.role == "consumes":
                        marked = torch.zeros_like(weight)
                        index = [range(n) if i is None else i for i, n in zip(part.index, weight.shape, strict=True)]
                        marked[torch.meshgrid(*map(torch.tensor, index), indexing="ij")] = 1
                        expected[item.matrix(marked).any(2)] = unit
            assert torch.equal(found, expected)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"Tied"}))
def test_measured_errors_are_numbers_that_never_fall_and_repeat(name: str) -> None:
    gm = capture(build(name), (images(),))
    coupling = analyze(gm)
    calibration = calibration_for(gm, images(24), batch_size=8)
    tensors = dict(gm.named_parameters()) | dict(gm.named_buffers())

    def curves() -> dict[str, tuple[float, ...]]:
        seen = observe(gm, coupling, calibration, seed=3)
        removals = {
            group.name: IMPORTANCES["second_order"](group, tensors, systems_of(group, coupling, seen, gm))
            for group in coupling.groups
        }
        found = measured(gm, coupling, removals, seen, calibration, sampling=Sampling(trial_images=16))
        assert all(found[key].order == removal.order for key, removal in removals.items())
        return {key: removal.errors for key, removal in found.items()}

    once = curves()
    assert once == curves()
    for errors in once.values():
        assert errors[0] == 0 and list(errors) == sorted(errors) and errors[-1] < float("inf")


def test_the_measured_error_is_that_of_the_network_cut_by_hand() -> None:
    model = Two().double()
    x = torch.randn(256, 5, dtype=torch.float64)
    gm = capture(model, (x[:2],))
    coupling = analyze(gm)
    calibration = Calibration([(x[:128],), (x[128:],)], held_out=1)
    seen = observe(gm, coupling, calibration)
    (group,) = coupling.groups
    removal = IMPORTANCES["second_order"](group, {}, systems_of(group, coupling, seen, gm))
    found = measured(gm, coupling, {group.name: removal}, seen, calibration, shares=(0.5,))[group.name]
    hidden = F.relu(model.first(x)).detach()
    stays = sorted(removal.order[2:])
    design = torch.cat([hidden[:, stays], torch.ones(256, 1).double()], 1)
    y = model(x).detach()
    judged = y[128:]
    fitted = design[128:] @ torch.linalg.lstsq(design[:128], y[:128]).solution
    spread = (judged - judged.mean(1, keepdim=True)).square().sum()
    assert found.errors[2] == pytest.approx(float((judged - fitted).square().sum() / spread), rel=0.05)


def test_what_is_learned_from_some_images_is_measured_on_others() -> None:
    model = Two().double()
    good, bad = torch.randn(32, 5, dtype=torch.float64), torch.full((32, 5), torch.nan).double()
    gm = capture(model, (good[:2],))
    coupling = analyze(gm)
    seen = observe(gm, coupling, Calibration([(good,), (bad,)], held_out=1))
    assert all(bool(each.covariance.isfinite().all()) for each in seen.values())
    (group,) = coupling.groups
    removal = IMPORTANCES["second_order"](group, {}, systems_of(group, coupling, seen, gm))
    judged = measured(gm, coupling, {group.name: removal}, seen, Calibration([(bad,), (good,)], held_out=1))
    assert all(map(math.isfinite, judged[group.name].errors))


class Words(nn.Module):
    """Reads whole numbers, which have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first, self.last = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(self.embedding(x) + steps[:, None, None] / 10)))


def test_whole_numbers_hide_no_sensitivity() -> None:
    model, x, steps = Words().eval(), torch.randint(0, 9, (16, 5)), torch.arange(16)
    gm = capture(model, (x, steps))
    coupling = analyze(gm)
    found = observe(gm, coupling, calibration_for(gm, [{"x": x, "steps": steps}]))
    assert {"last.weight", "first.weight"} <= set(found)
    assert all(bool(seen.sensitivity.any()) for seen in found.values())


def test_only_so_many_images_are_looked_at() -> None:
    gm = capture(build("Plain"), (images(),))
    coupling, told = analyze(gm), list[tuple[int, int]]()
    batches = [(images(8, seed=seed),) for seed in range(4)]
    some = observe(
        gm, coupling, Calibration(batches), sampling=Sampling(images=16), progress=lambda *done: told.append(done)
    )
    assert told == [(8, 16), (16, 16)]
    same = observe(gm, coupling, Calibration(batches[:2]))
    assert all(torch.equal(seen.covariance, same[name].covariance) for name, seen in some.items())


def test_trials_cost_no_more_than_the_work_that_they_may() -> None:
    gm = capture(build("Plain"), (images(),))
    coupling, calibration = analyze(gm), calibration_for(gm, images(256), batch_size=32, held_out=0.5)
    seen = observe(gm, coupling, calibration)
    tensors = dict(gm.named_parameters()) | dict(gm.named_buffers())
    score = IMPORTANCES["second_order"]
    removals = {group.name: score(group, tensors, systems_of(group, coupling, seen, gm)) for group in coupling.groups}
    told: list[tuple[int, int]] = []
    for runs in (0.0, 0.5, 1e9):
        limited = Sampling(trial_runs=runs)
        measured(gm, coupling, removals, seen, calibration, sampling=limited, progress=lambda *done: told.append(done))
    run = sorted({total for _, total in told})
    assert len(run) == 3 and run[0] == FEWEST_IMAGES and run[-1] == 128


class TokensFirst(nn.Module):
    """The images are the second axis of what the layers see."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x.transpose(0, 1)))).transpose(0, 1)


@pytest.mark.parametrize("chunk", [64, 1])
def test_an_image_is_one_wherever_its_axis_is(chunk: int) -> None:
    plain = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    turned = TokensFirst()
    turned.load_state_dict(dict(zip(turned.state_dict(), plain.state_dict().values(), strict=True)))
    x = torch.randn(64, 9, 5)
    found = []
    for model in (plain, turned):
        gm = capture(model, (x[:2],))
        memory = chunk * bytes_per_image(gm)
        (seen,) = observe(gm, analyze(gm), calibration_for(gm, x, held_out=0), memory=memory).values()
        found.append(seen)
    torch.testing.assert_close(found[0].sensitivity, found[1].sensitivity, rtol=1e-4, atol=1e-6)


def test_the_squares_of_large_outputs_in_half_precision_do_not_overflow() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 1))
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(20)
    x = torch.randn(16, 3, 32, 32)
    diagonals = []
    for dtype in (torch.float32, torch.float16):
        gm = capture(model.to(dtype), (x[:2].to(dtype),))
        (seen,) = observe(gm, analyze(gm), calibration_for(gm, x.to(dtype), held_out=0)).values()
        diagonals.append(seen.sensitivity[0].diagonal())
    torch.testing.assert_close(diagonals[1], diagonals[0], rtol=0.02, atol=0)


class Heads(nn.Module):
    """Two outputs, each of a layer of its own, the second on another scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.one, self.two = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 4)
        self.scale = scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.first(x))
        return self.one(y), self.two(y) * self.scale


def test_the_scale_of_an_output_does_not_count() -> None:
    curves = []
    for scale in (1.0, 1000.0):
        torch.manual_seed(0)
        gm = capture(Heads(scale), (torch.randn(2, 5),))
        coupling, calibration = analyze(gm), calibration_for(gm, images_of(96), held_out=0.25)
        seen = observe(gm, coupling, calibration)
        (group,) = coupling.groups
        removal = IMPORTANCES["second_order"](group, {}, systems_of(group, coupling, seen, gm))
        curves.append(measured(gm, coupling, {group.name: removal}, seen, calibration)[group.name].errors)
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


def images_of(count: int) -> Tensor:
    """Rows of five numbers, the same every time."""
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1))
