"""Passes in their order: what comes too early or too late, whole recipes in a PassManager, a user's pass between."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager

import fxprune as fp
from fxprune.errors import RewriteError, VerificationError
from fxprune.passes.base import clone
from fxprune.passes.choose import Choose
from fxprune.passes.compare import Compare
from fxprune.passes.configure import Configure
from fxprune.passes.lift import Lift
from fxprune.passes.recalibrate import Recalibrate
from fxprune.passes.reconstruct import Reconstruct
from fxprune.passes.refine import Refine
from fxprune.passes.squeeze import Squeeze
from fxprune.recipes import RECIPES
from tests.networks import build
from tests.passes.prepared import DATA, HALF, MODELS, PASSES, images, ordered, prepared

NEEDS = {  # what a pass says on a graph that only `capture` has seen; the others can come first
    "Compare": "Compare needs dense, coupling, plan, calibration .* run Choose and Shrink before it",
    "Initialise": "Initialise needs a graph of modules: run Lift first",
    "Recalibrate": "Recalibrate needs dense, calibration .* run Choose and Shrink before it",
    "Reconstruct": "Reconstruct needs dense, coupling, plan, calibration .* run Choose and Shrink before it",
    "Refine": "Refine needs dense, coupling, plan, calibration .* run Choose and Shrink before it",
    "Shrink": "Shrink has no plan: give it one, or run Choose first",
    "Squeeze": "Squeeze needs coupling, plan, calibration .* run Choose before it",
    "Verify": "nothing to verify: run Shrink first",
}


@pytest.mark.parametrize("kind", PASSES, ids=lambda kind: kind.__name__)
def test_a_pass_that_comes_too_early_says_what_must_come_before(kind: type[PassBase]) -> None:
    gm = clone(fp.capture(build("Residual"), images()))
    if kind.__name__ not in NEEDS:
        ordered(kind)(gm)
        return
    with pytest.raises(RewriteError, match=NEEDS[kind.__name__]):
        ordered(kind)(gm)
    with pytest.raises(Exception, match=f"running the '{kind.__name__}' pass") as wrapped:
        PassManager(passes=[ordered(kind)])(gm)
    assert isinstance(wrapped.value.__cause__, RewriteError)


@pytest.mark.parametrize(
    "kind",
    [kind for kind in PASSES if kind.__name__ not in {"Initialise", "Lift", "Synthesise", "Tidy", "Verify"}],
    ids=lambda kind: kind.__name__,
)
def test_a_pass_that_comes_after_lift_says_that_it_must_come_before(kind: type[PassBase]) -> None:
    gm, step = prepared(kind, "Branches")
    Lift()(gm)
    with pytest.raises(
        RewriteError, match=f"{kind.__name__} works on ATen calls, and Lift has run: put it before Lift"
    ):
        step(gm)


def test_a_choice_after_the_removal_is_refused() -> None:
    gm = fp.shrink(fp.capture(build("Residual"), images()), fp.Plan({"conv1.0.weight": [0, 2]}))
    for kind in (Choose, Configure):
        with pytest.raises(RewriteError, match=f"{kind.__name__} came too late: .* Shrink has run. Capture anew"):
            ordered(kind)(gm)


@pytest.mark.parametrize("kind", [Recalibrate, Refine, Compare])
def test_corrections_that_are_not_fused_yet_are_not_judged(kind: type[PassBase]) -> None:
    gm, step = prepared(Reconstruct, "Branches")
    step(gm)
    with pytest.raises(RewriteError, match=f"{kind.__name__} came too early: .* Put Fuse before it"):
        ordered(kind)(gm)


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("best", "datafree") else name for name in RECIPES],
)
def test_a_recipe_in_a_pass_manager_gives_what_prune_gives(recipe: str) -> None:
    data = None if recipe in ("datafree", "magnitude") else DATA[:48]
    model = MODELS["Residual"]()
    gm = clone(fp.capture(model, images()))
    steps = fp.pipeline(recipe, budget=HALF, calibration=data)
    manager = PassManager(passes=[*steps], steps=2, run_checks_after_each_pass=True)
    result = manager(gm)
    wanted = fp.prune(model, images(), budget=HALF, calibration=data, recipe=recipe)
    assert result.modified and result.graph_module.code == wanted.model.code
    found = result.graph_module.state_dict()
    assert found.keys() == wanted.model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.model.state_dict().items())


class Silu(PassBase):
    """A pass of a user's: replaces relu by silu."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        found = [node for node in graph_module.graph.nodes if node.target is torch.ops.aten.relu.default]
        for node in found:
            node.target = torch.ops.aten.silu.default
        graph_module.recompile()
        return PassResult(graph_module, bool(found))


def with_silu(place: int) -> list[PassBase]:
    """The default recipe with little to learn, and the user's pass after the first `place` passes."""
    steps = fp.pipeline("psp", budget=HALF, calibration=DATA[:48])
    short: dict[type[PassBase], PassBase] = {Squeeze: Squeeze(epochs=1), Refine: Refine(epochs=1)}
    found = [short.get(type(step), step) for step in steps]
    return [*found[:place], Silu(), *found[place:]]


@pytest.mark.parametrize("place", [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11])
def test_a_pass_of_the_user_stands_between_two_of_ours(place: int) -> None:
    gm = clone(fp.capture(build("Residual"), images()))
    result = PassManager(passes=[*with_silu(place)], steps=2)(gm)
    assert result.graph_module.code.count("F.silu") == 3 and "relu" not in result.graph_module.code
    assert result.graph_module(images(5)).shape == (5, 3)


def test_a_pass_that_changes_what_is_computed_does_not_slip_past_the_proof() -> None:
    steps = with_silu(4)
    assert type(steps[3]).__name__ == "Shrink" and type(steps[5]).__name__ == "Verify"
    with pytest.raises(Exception, match="running the 'Verify' pass") as wrapped:
        PassManager(passes=[*steps])(clone(fp.capture(build("Residual"), images())))
    assert isinstance(wrapped.value.__cause__, VerificationError)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_pipeline_prints_as_it_would_be_written(recipe: str) -> None:
    steps = fp.pipeline(recipe, budget=HALF, calibration=None if recipe == "datafree" else DATA)
    for step in steps:
        text = repr(step)
        assert text.startswith(f"{type(step).__name__}(") and len(text) < 250
        assert not any(noise in text for noise in ("0x", "tensor", "Checkpoint", "function"))
    assert repr(steps[-2:]) == "(Tidy(), Lift())"
