"""Reconstruct: golden corrections, exact where it can be, never worse, and refusals."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import linear

from fxprune.calibrate.images import Calibration, calibration_for
from fxprune.calibrate.judge import output_error
from fxprune.capture import capture
from fxprune.checkpoint import Checkpoint
from fxprune.coupling import analyze
from fxprune.errors import RewriteError
from fxprune.passes.base import clone
from fxprune.passes.fuse import Fuse
from fxprune.passes.reconstruct import Reconstruct
from fxprune.passes.shrink import shrink
from fxprune.types import Plan
from tests.networks import NETWORKS, build, calls, images, modified, random_plan


def shrunk(name: str, plan: Plan | None = None, count: int = 48) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A network and its shrunk graph, with calibration handed on."""
    gm = capture(build(name), (images(),))
    small = shrink(gm, plan or random_plan(analyze(gm), 1, balanced=True))
    small.meta["fxprune"]["calibration"] = calibration_for(gm, images(count, seed=3), batch_size=8)
    return gm, small


def test_corrections_are_additions_behind_the_layers_that_have_a_home_for_them() -> None:
    _, small = shrunk("Plain")
    assert modified(Reconstruct()(small))
    assert (
        calls(small)
        == dedent("""\
        conv2d[3, 8, 8] = conv2d.default(x, [1, 1], [1, 1])
        relu[3, 8, 8] = relu.default(conv2d)
        max_pool2d[3, 4, 4] = max_pool2d.default(relu, [2, 2])
        conv2d_1[2, 4, 4] = conv2d.default(max_pool2d, [1, 1], [1, 1])
        add_tensor[2, 4, 4] = add.Tensor(conv2d_1)
        relu_1[2, 4, 4] = relu.default(add_tensor)
        adaptive_avg_pool2d[2, 2, 2] = adaptive_avg_pool2d.default(relu_1, [2, 2])
        flatten[8] = flatten.using_ints(adaptive_avg_pool2d, 1)
        linear[2] = linear.default(flatten)
        add_tensor_1[2] = add.Tensor(linear)
        relu_2[2] = relu.default(add_tensor_1)
        linear_1[3] = linear.default(relu_2)
        add_tensor_2[3] = add.Tensor(linear_1)
        """).rstrip()
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_are_no_worse_and_a_second_run_changes_nothing(name: str) -> None:
    gm, small = shrunk(name)
    errors = [output_error(gm, small, small.meta["fxprune"]["calibration"])]
    Reconstruct()(small)
    Fuse()(small)
    errors.append(output_error(gm, small, small.meta["fxprune"]["calibration"]))
    ((stage, *noted),) = small.meta["fxprune"]["stages"]
    assert stage == "least squares" and errors[1] <= errors[0]
    assert noted == pytest.approx(errors, rel=1e-3, abs=1e-9)
    output = small(images(4))
    assert not modified(Reconstruct()(small))
    assert torch.equal(small(images(4)), output) and torch.isfinite(output).all()
    assert output.shape == gm(images(4)).shape


@pytest.mark.parametrize("name", ["Plain", "Residual", "Padded", "Grouped", "Depthwise"])
def test_the_outputs_come_closer(name: str) -> None:
    gm, small = shrunk(name, count=256)
    bare, x = clone(small), images(64, seed=9)
    Reconstruct()(small)
    Fuse()(small)
    assert (small(x) - gm(x)).square().sum() < 0.8 * (bare(x) - gm(x)).square().sum()


def test_a_channel_that_repeats_another_is_made_up_for_exactly() -> None:
    model = build("Plain")
    with torch.no_grad():
        for name in ("weight", "bias"):
            tensor = getattr(model.fc1, name)
            tensor[1] = 2 * tensor[0]
    gm = capture(model, (images(),))
    small = shrink(gm, Plan({"fc1.weight": [1, 2, 3, 4]}))
    small.meta["fxprune"]["calibration"] = calibration_for(gm, images(128), batch_size=16)
    Reconstruct(rho=(1e-8,))(small)
    torch.testing.assert_close(small(images(8, seed=5)), gm(images(8, seed=5)), rtol=1e-3, atol=1e-4)


def test_nothing_of_the_users_model_changes() -> None:
    model = build("Residual")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gm = capture(model, (images(),))
    small = shrink(gm, random_plan(analyze(gm), 1))
    small.meta["fxprune"]["calibration"] = calibration_for(gm, images(32), batch_size=8)
    Reconstruct()(small)
    Fuse()(small)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = shrunk("Residual")[1], shrunk("Residual")[1]
    for small in (first, second):
        Reconstruct(rows_per_image=4, seed=7)(small)
        Fuse()(small)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_are_solved_for_without_the_held_out_images() -> None:
    solved = []
    for seed in (4, 5):
        _, small = shrunk("Plain")
        batches = [(images(24, seed=3),), (images(24, seed=seed),)]
        small.meta["fxprune"]["calibration"] = Calibration(batches, held_out=1)
        assert modified(Reconstruct(rho=(1e-2,))(small))
        solved.append(small.get_parameter("fc1.weight"))
    assert torch.equal(*solved)


def test_weights_that_cannot_be_improved_stay() -> None:
    _, small = shrunk("Plain", Plan({}))  # the outputs are right as they are
    text, before = calls(small), small(images(4))
    assert not modified(Reconstruct()(small))
    assert calls(small) == text and torch.equal(small(images(4)), before)
    assert small.meta["fxprune"]["stages"] == (("least squares", 0.0, 0.0),)


def test_an_interrupted_run_goes_on_from_what_was_solved(tmp_path: Path) -> None:
    first, second = shrunk("Residual")[1], shrunk("Residual")[1]
    Reconstruct(seed=1, checkpoint=Checkpoint(tmp_path / "state"))(first)
    Reconstruct(seed=2, checkpoint=Checkpoint(tmp_path / "state"))(second)  # would draw other rows if it solved again
    assert torch.equal(first(images(4)), second(images(4)))


def test_few_images_give_numbers() -> None:
    for count in (1, 2):
        _, small = shrunk("Depthwise", count=count)
        Reconstruct()(small)
        assert torch.isfinite(small(images())).all()


def test_what_is_missing_is_named() -> None:
    gm = clone(capture(build("Plain"), (images(),)))
    with pytest.raises(RewriteError, match="Reconstruct needs dense, coupling, plan, calibration"):
        Reconstruct()(gm)


class ScaledBias(nn.Module):
    """The bias of a layer is a product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(8, 32), nn.Linear(24, 5)
        self.weight, self.bias = nn.Parameter(torch.randn(24, 32) / 4), nn.Parameter(torch.randn(24))
        self.scale = nn.Parameter(torch.full((24,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(linear(self.first(x).relu(), self.weight, self.bias * self.scale).relu())
        return y


def test_a_bias_may_be_computed() -> None:
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    gm = capture(ScaledBias().eval(), (x[:2],))
    small = shrink(gm, Plan({"first.weight": list(range(20)), "weight": list(range(20))}))
    calibration = small.meta["fxprune"]["calibration"] = calibration_for(gm, x, batch_size=50)
    before, weights = output_error(gm, small, calibration), small.get_parameter("weight").detach().clone()
    assert modified(Reconstruct()(small)) and modified(Fuse()(small))
    assert output_error(gm, small, calibration) < 0.5 * before
    assert not torch.equal(small.get_parameter("weight"), weights)
