"""Outputs that say little or nothing of the network: single numbers, parameters, whole numbers, masked logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.calibrate.images import calibration_for
from fxprune.calibrate.lesson import Lesson
from fxprune.calibrate.measure import measured
from fxprune.coupling.kept import Kept
from fxprune.errors import BudgetError
from fxprune.importance import magnitude
from fxprune.passes.choose import tensors_of

BUDGET = fp.Budget(flops=0.6)
DATA = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """Two convolutions and a head; `finish` makes the outputs."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, classes)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("forbidden", torch.tensor([False, True, False, False])[:classes])

    def forward(self, x: Tensor) -> Any:
        return self.finish(self.head(self.second(self.first(x)).mean((2, 3))))

    def finish(self, logits: Tensor) -> Any:
        return logits


class WithScale(Small):
    def finish(self, logits: Tensor) -> Any:
        return logits, self.scale.exp()


class WithParameter(Small):
    def finish(self, logits: Tensor) -> Any:
        return logits, self.scale


class Masked(Small):
    def finish(self, logits: Tensor) -> Any:
        return logits.masked_fill(self.get_buffer("forbidden"), float("-inf"))


class Answer(Small):
    def finish(self, logits: Tensor) -> Any:
        return logits.argmax(1)


class Best(Small):
    def finish(self, logits: Tensor) -> Any:
        return logits.softmax(1).topk(2)[1], logits > 0


class Fired(Small):
    """How many channels of the last layer fire: the values below the whole numbers lose channels."""

    def forward(self, x: Tensor) -> Any:
        return (self.second(self.first(x)).mean((2, 3)) > 0.2).sum(1)


class FixedBatch(Small):
    def finish(self, logits: Tensor) -> Any:
        return logits.view(40, 4)


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [*((kind, "fast") for kind in (WithScale, WithParameter, Answer)), (Masked, "psp")],
)
def test_they_do_not_disturb_the_corrections(kind: type[Small], recipe: str) -> None:
    model = kind().eval()
    result = fp.prune(model, DATA[:2], budget=BUDGET, calibration=DATA, recipe=recipe)
    plain = Small().eval()
    plain.load_state_dict(model.state_dict())
    small = Small().eval()
    twin = result.plan.apply(small)
    twin.load_state_dict(result.model.state_dict())
    bare = fp.shrink(fp.capture(plain, DATA[:2]), result.plan)
    removed, corrected = (float((each(DATA) - plain(DATA)).detach().square().mean()) for each in (bare, twin))
    assert corrected < 0.5 * removed


def test_one_number_an_image_is_judged_by_how_images_differ() -> None:
    result = fp.prune(Small(1).eval(), DATA[:2], budget=BUDGET, calibration=DATA[:8], recipe="fast")
    assert all(before < 1e3 for _, before, _ in result.report.stages)


@pytest.mark.parametrize("budget", [BUDGET, fp.Budget(max_error=0.1)], ids=["flops", "max_error"])
def test_answers_are_judged_by_the_logits_below_them(budget: fp.Budget) -> None:
    answers, logits = (
        fp.prune(kind().eval(), DATA[:2], budget=budget, calibration=DATA, recipe="fast") for kind in (Answer, Small)
    )
    assert answers.plan == logits.plan and answers.report.stages == logits.report.stages
    assert any("the outputs are whole numbers: errors are those of" in note for note in answers.report.notes)
    found = answers.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in logits.model.state_dict().items())


def test_several_values_may_be_below() -> None:
    report = fp.prune(Best().eval(), DATA[:2], budget=BUDGET, calibration=DATA, recipe="fast").report
    assert 0 < report.stages[-1].after < report.stages[0].before


def test_an_error_needs_a_value_to_judge_by() -> None:
    with pytest.raises(BudgetError, match="max_error= needs floating-point outputs, or values of which they are made"):
        fp.prune(Fired().eval(), DATA[:2], budget=fp.Budget(max_error=0.1), calibration=DATA)


@pytest.mark.parametrize("recipe", ["fast", "psp"])
def test_where_nothing_can_be_judged_no_error_is_reported(recipe: str) -> None:
    options: dict[str, Any] = {"budget": BUDGET, "calibration": DATA, "freeze": ["first"], "recipe": recipe}
    model = Fired().eval()
    result = fp.prune(model, DATA[:2], **options)
    assert len(result.plan.kept["second.0.weight"]) < 8
    assert result.report.stages == () and result.report.layers
    assert any(warning.startswith("nothing judged the corrections") for warning in result.report.weak)
    assert result.model(DATA).shape == (96,)


@pytest.mark.parametrize("recipe", ["fast", "psp"])
def test_a_batch_that_the_network_bakes_in_is_never_cut(recipe: str) -> None:
    data = torch.randn(240, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = fp.prune(FixedBatch().eval(), data[:40], budget=BUDGET, calibration=data, recipe=recipe)
    assert result.report.stages[-1].after < result.report.stages[0].before


def test_the_input_of_a_sequential_program_keeps_its_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)).eval()
    program = torch.export.export(model, (DATA[:2],))
    small = fp.prune_exported(program, budget=BUDGET, calibration=DATA[:2].repeat(8, 1, 1, 1), recipe="magnitude")
    assert small.module()(DATA[:2]).shape == (2, 4)


def test_a_network_within_the_limits_and_the_error_is_found_although_the_curves_foretell_more() -> None:
    model = Small().eval()
    error = fp.prune(model, DATA[:2], budget=BUDGET, calibration=DATA, recipe="fast").report.stages[-1].after
    both = fp.Budget(flops=0.6, max_error=1.05 * error)
    report = fp.prune(model, DATA[:2], budget=both, calibration=DATA, recipe="fast").report
    assert report.after["flops"] <= 0.6 * report.before["flops"]
    assert report.stages[-1].after <= 1.05 * error


def test_another_network_does_not_go_on_from_this_state(tmp_path: Any) -> None:
    class Other(Small):
        def finish(self, logits: Tensor) -> Any:
            return logits.tanh()

    def stop(stage: str, done: int, total: int, error: float | None = None) -> None:
        if stage == "refine":
            raise KeyboardInterrupt

    options: dict[str, Any] = {"budget": BUDGET, "calibration": DATA, "checkpoint": tmp_path / "state"}
    with pytest.raises(KeyboardInterrupt):
        fp.prune(Small().eval(), DATA[:2], progress=stop, **options)
    with pytest.raises(fp.errors.ResumeError, match="graph"):
        fp.prune(Other().eval(), DATA[:2], **options)


class OneNumber(Small):
    """A number an image; `baked` takes one image at a time."""

    def __init__(self, baked: bool) -> None:
        super().__init__(classes=1)
        self.baked = baked

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.view(1, 3, 8, 8) if self.baked else x)


def test_one_number_an_image_is_learned_from_and_judged_one_image_at_a_time() -> None:
    """As where a batch holds many: `measured` and `Lesson` see what they see there."""
    errors, variances = [], []
    for baked in (False, True):
        gm = fp.capture(OneNumber(baked), DATA[: 1 if baked else 2])
        coupling, tensors = fp.analyze(gm), tensors_of(gm)
        removals = {group.name: magnitude(group, tensors, ()) for group in coupling.groups}
        found = measured(gm, coupling, removals, {}, calibration_for(gm, DATA[:24], held_out=0), shares=(0.5,))
        errors.append([removal.errors[-1] for removal in found.values()])
        whole, data = Kept.under(coupling, fp.Plan({})), calibration_for(gm, DATA[:24])
        taught = Lesson(gm, gm, whole, data, inside=5.0, batch_size=8, augment=False, memory=1 << 30)
        variances.append([float(taught._variance[name]) for name in taught._outputs])
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
    assert variances[1] == pytest.approx(variances[0], rel=1e-3)


class HandedThrough(Small):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def test_an_input_that_is_handed_through_says_nothing_of_the_error() -> None:
    runs = [
        fp.prune(kind(), DATA[:2], budget=BUDGET, calibration=DATA, recipe="fast").report.stages
        for kind in (Small, HandedThrough)
    ]
    assert [stage.after for stage in runs[0]] == pytest.approx([stage.after for stage in runs[1]], rel=1e-3)


class Dropping(Small):
    """Drops activations in evaluation, too."""

    def finish(self, logits: Tensor) -> Any:
        return nn.functional.dropout(logits, 0.2)


def test_a_network_that_draws_random_numbers_is_pruned_alike_every_time() -> None:
    found, model = [], Dropping()
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(fp.prune(model, DATA[:2], budget=BUDGET, calibration=DATA, recipe="fast"))
        assert torch.equal(before, torch.get_rng_state())
    assert found[0].report.stages == found[1].report.stages
    assert torch.equal(found[0].model.get_parameter("head.weight"), found[1].model.get_parameter("head.weight"))
