"""Passes of fxprune by the conventions of ExecuTorch and Torch-TensorRT, without either of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager, pass_result_wrapper
from torch.fx.passes.pass_manager import PassManager as PlainPassManager

import fxprune as fp
from fxprune.adapters import executorch_pass, tensorrt_pass
from fxprune.errors import CaptureError
from fxprune.passes.pin_sizes import PinSizes
from fxprune.passes.shrink import Shrink
from fxprune.passes.tidy import Tidy

PLAN = fp.Plan({"0.weight": range(4)})


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 64, 4)),
    ).eval()


def exported(model: nn.Module) -> ExportedProgram:
    return torch.export.export(model, (images(2),), dynamic_shapes=({0: Dim.AUTO},))


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))


def steps() -> tuple[PassBase, ...]:
    return PinSizes(), Shrink(PLAN), Tidy()


class Settings:
    """Stands where Torch-TensorRT hands over its CompilationSettings."""


def test_signatures() -> None:
    """`Callable[[GraphModule], PassResult]`, and `Callable[[GraphModule, CompilationSettings], GraphModule]`."""
    executorch, tensorrt = executorch_pass(Tidy()), tensorrt_pass(Tidy())
    assert inspect.signature(executorch, eval_str=True) == inspect.Signature(
        [parameter("graph_module", fx.GraphModule)], return_annotation=PassResult
    )
    assert inspect.signature(tensorrt, eval_str=True) == inspect.Signature(
        [parameter("gm", fx.GraphModule), parameter("settings", Any)], return_annotation=fx.GraphModule
    )
    assert executorch.__name__ == tensorrt.__name__ == "Tidy"  # what their pass managers show, and insert by


def parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)


def test_executorch_runs_passes_through_a_pass_manager() -> None:
    model = network()
    passes = [pass_result_wrapper(executorch_pass(step)) for step in steps()]  # as ExecuTorch's PassManager does
    result = PassManager(passes, run_checks_after_each_pass=True, steps=2)(exported(model).module(check_guards=False))
    assert result.modified
    wanted = fp.shrink(fp.capture(model, images(2)), PLAN)
    for batch in (2, 5):
        torch.testing.assert_close(result.graph_module(images(batch)), wanted(images(batch)))


def test_tensorrt_runs_passes_one_after_another() -> None:
    model = network()
    gm: Any = exported(model).module(check_guards=False)
    manager = PlainPassManager([tensorrt_pass(step) for step in steps()])
    for step in manager.passes:  # as DynamoPassManager does
        gm = step(gm, Settings())
    wanted = fp.shrink(fp.capture(model, images(2)), PLAN)
    for batch in (2, 5):
        torch.testing.assert_close(gm(images(batch)), wanted(images(batch)))


def test_a_captured_graph_is_taken_as_it_is() -> None:
    gm = fp.capture(network(), images(2))
    known = gm.meta["fxprune"]["capture"]
    assert executorch_pass(Shrink(PLAN))(gm).modified
    assert gm.meta["fxprune"]["capture"] is known
    assert not executorch_pass(Shrink(PLAN))(gm).modified


@pytest.mark.parametrize("adapter", [executorch_pass, tensorrt_pass])
def test_a_pass_on_calls_takes_a_graph_with_parameters_as_inputs(adapter: Callable[..., Any]) -> None:
    program = exported(network())
    arguments = () if adapter is executorch_pass else (Settings(),)
    assert adapter(Tidy())(program.graph_module, *arguments) is not None
    program.validate()


@pytest.mark.parametrize("step", [PinSizes(), Shrink(PLAN)])
def test_refuses_a_graph_with_parameters_as_inputs(step: PassBase) -> None:
    name = type(step).__name__
    with pytest.raises(CaptureError, match=f"{name} needs the parameters, .*: prune the program before, with fxprune"):
        executorch_pass(step)(exported(network()).graph_module)


class Overwriting(nn.Module):
    """Writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).add_(1)


def test_refuses_calls_that_write_in_place() -> None:
    gm = torch.export.export(Overwriting(), (torch.randn(2, 4),)).module(check_guards=False)
    assert isinstance(gm, fx.GraphModule)
    with pytest.raises(
        CaptureError, match="Shrink needs plain calls, and `add_` .* writes in place: run it on fxprune"
    ):
        tensorrt_pass(Shrink(PLAN))(gm, Settings())
