"""Capture: every kind of model, the dynamic batch, and the mistakes it explains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, export

import fxprune as fp
from fxprune.capture import capture_info
from fxprune.errors import CaptureError, InputError
from tests.networks import Plain, build, images


def targets(gm: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in gm.graph.nodes if node.op == "call_function"}


def test_module_keeps_names_and_batch() -> None:
    model = build("Residual")
    gm = fp.capture(model, images(batch=1))
    assert list(gm.state_dict()) == list(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in gm.state_dict().items())
    assert capture_info(gm).dynamic_batch
    for batch in (1, 2, 5):
        assert torch.allclose(gm(images(batch)), model(images(batch)), atol=1e-6)


def test_symbolic_trace_and_exported_program_give_the_same_graph() -> None:
    model = build("Residual")
    traced = fp.capture(fx.symbolic_trace(model), images())
    program = fp.capture(export(model, (images(),), dynamic_shapes=({0: Dim.AUTO},)))
    direct = fp.capture(model, images())
    assert targets(traced) == targets(program) == targets(direct)
    assert str(fp.analyze(traced)).split("held")[0] == str(fp.analyze(direct)).split("held")[0]
    assert fp.capture(direct, images()) is direct


def test_training_mode_is_kept_and_capture_is_of_evaluation() -> None:
    model = build("Residual").train()
    model.get_submodule("stem").eval()
    flags = [module.training for module in model.modules()]
    statistics = model.get_buffer("conv1.1.running_mean").clone()
    gm = fp.capture(model, images())
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(model.get_buffer("conv1.1.running_mean"), statistics)
    assert torch.allclose(gm(images()), build("Residual")(images()), atol=1e-6)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        z = y.relu_()
        y += 1
        return self.head((y * z).mean((2, 3)))


def test_writes_in_place_become_plain_calls() -> None:
    model = InPlace().eval()
    gm = fp.capture(model, images())
    assert {"aten.relu.default", "aten.add.Tensor"} <= targets(gm)
    assert not any(name.removesuffix(".default").removesuffix(".Tensor").endswith("_") for name in targets(gm))
    assert torch.allclose(gm(images()), model(images()))
    assert len(fp.analyze(gm).groups) == 1


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)).view(1, 4))


def test_a_baked_batch_stays_static_and_is_noted() -> None:
    gm = fp.capture(Fixed(), images(batch=1))
    assert not capture_info(gm).dynamic_batch
    assert "bakes its batch size in" in capture_info(gm).notes[0]
    assert gm(images(batch=1)).shape == (1, 2)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, *xs: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"sum": self.conv(xs[0] + xs[1]) * scale}


def test_variable_and_keyword_inputs() -> None:
    gm = fp.capture(Keywords(), (images(), images()), example_kwargs={"scale": torch.ones(2, 1, 1, 1)})
    assert capture_info(gm).dynamic_batch
    assert gm(images(3), images(3), scale=torch.ones(3, 1, 1, 1))["sum"].shape == (3, 4, 8, 8)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x


def test_control_flow_on_values_is_refused_with_the_line() -> None:
    with pytest.raises(
        CaptureError, match=r"cannot trace Branching at .*test_capture.py:\d+: if x.sum\(\) > 0"
    ) as caught:
        fp.capture(Branching(), images())
    assert "torch.where" in str(caught.value)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.randn(2, 4, 8, 8), r"does not run on the example inputs \(\(2, 4, 8, 8\) torch.float32 on cpu\)"),
        (torch.randn(2, 3, 8, 8).double(), r"torch.float64 on cpu\); its parameters are torch.float32 on cpu"),
        (torch.randn(2, 3), r"\(\(2, 3\) torch.float32"),
        (torch.full((2, 3, 8, 8), torch.nan), "holds NaN or infinity"),
        (None, "example_inputs is needed"),
        ((), "holds no tensor"),
        (torch.zeros(0, 3, 8, 8), "is empty"),
        (torch.zeros(2, 3, 8, 8, device="meta"), "on the meta device"),
    ],
)
def test_examples_that_do_not_fit(example: Tensor | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fp.capture(Plain(), example)


def test_other_things_are_refused() -> None:
    with pytest.raises(CaptureError, match="cannot capture a int"):
        fp.capture(3, images())  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match="was not made by fxprune.capture"):
        fp.analyze(fx.symbolic_trace(nn.ReLU()))
    with pytest.raises(CaptureError, match="this Plain was not made"):
        fp.analyze(Plain())  # type: ignore[arg-type]


class Contexts(nn.Module):
    def __init__(self, context: str) -> None:
        super().__init__()
        self.conv, self.head, self.context = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), context

    def forward(self, x: Tensor) -> Tensor:
        if self.context == "no_grad":
            with torch.no_grad():
                return self.head(self.conv(x))
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(self.conv(x))


def test_no_grad_inside_a_forward_is_no_obstacle() -> None:
    assert len(fp.analyze(fp.capture(Contexts("no_grad"), images())).groups) == 1


def test_subgraphs_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"switches autocast.*wrap_with_autocast"):
        fp.capture(Contexts("autocast"), images())


def test_names_that_are_keywords_are_refused() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"class": nn.Conv2d(3, 4, 1)})

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.parts["class"](x)
            return y

    with pytest.raises(CaptureError, match="cannot be written as an attribute"):
        fp.capture(Keyword(), images())


def test_a_batch_baked_in_by_view_stays_static() -> None:
    class Viewed(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x.view(2, 3, 8, 8)).mean((2, 3)))

    gm = fp.capture(Viewed(), images(batch=2))
    assert not capture_info(gm).dynamic_batch
    assert "stays static" in capture_info(gm).notes[0]


def test_a_write_into_a_part_of_a_split_can_be_captured() -> None:
    class Parts(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            a, b = self.conv(x).chunk(2, 1)
            a.mul_(torch.sigmoid(b))
            return self.head(torch.cat([a, b], 1).mean((2, 3)))

    model = Parts()
    with torch.no_grad():
        assert torch.allclose(fp.capture(model, images())(images()), model(images()), atol=1e-6)
