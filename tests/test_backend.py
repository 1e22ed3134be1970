"""The torch.compile backend: a plan applied to what dynamo traced, equal to the shrunk graph, or refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.exc import BackendCompilerFailed

import fxprune as fp
from fxprune.backend import fxprune
from fxprune.errors import CaptureError, PlanError
from fxprune.types import ChannelGroup

ROOT = Path(__file__).resolve().parents[1]


class Residual(nn.Module):
    """The way around comes first in the forward, and last in the module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.outer = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 4)
        self.around = nn.Conv2d(8, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.around(x) + self.outer(self.inner(x))
        return self.head(x.mean((2, 3)).view(x.shape[0], -1))


class Tokens(nn.Module):
    """Attention, channels read at an index, a tensor that is no parameter, and a tied one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.register_buffer("order", torch.arange(15, -1, -1))
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.scale = torch.linspace(0.5, 1.5, 16)
        self.decode = nn.Linear(16, 6)
        self.decode.weight = nn.Parameter(torch.randn(6, 16))
        self.twin = self.decode

    def forward(self, x: Tensor) -> Tensor:
        return self.twin(self.layer(self.embed(x)[..., self.order] * self.scale))


def sample(network: nn.Module, batch: int) -> Tensor:
    shape = (batch, 3, 8, 8) if isinstance(network, Residual) else (batch, 5, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(batch))


def some(group: ChannelGroup) -> list[int]:
    """Every second unit, of each block."""
    return [unit for block in group.blocks or (tuple(range(group.width)),) for unit in block[::2]]


def prepared(network: Callable[[], nn.Module]) -> tuple[nn.Module, fp.Plan]:
    model = network().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_mean"))
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    groups = fp.analyze(fp.capture(model, sample(model, 2))).groups
    return model, fp.Plan({group.name: some(group) for group in groups})


def compiled(model: Any, plan: Any, **options: Any) -> Any:
    given = {"plan": plan, "inner": "eager", **options}
    return torch.compile(model, backend=fxprune, fullgraph=True, options=given)


def shrunk(model: nn.Module, plan: fp.Plan) -> nn.Module:
    return fp.shrink(fp.capture(model, sample(model, 2)), plan)


def refusal(function: Callable[..., Any], *inputs: Tensor) -> Exception:
    with pytest.raises(BackendCompilerFailed) as caught:
        function(*inputs)
    return caught.value.inner_exception


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("network", "inner"), [(Residual, "aot_eager"), (Tokens, "eager")])
def test_equal_to_the_shrunk_graph_at_any_batch(network: Callable[[], nn.Module], inner: str) -> None:
    model, plan = prepared(network)
    run, small = compiled(model, plan, inner=inner), shrunk(model, plan)
    for batch in (2, 3, 5, 1):  # a fixed size, one held open, one that is taken from it, and one alone
        torch.testing.assert_close(run(sample(model, batch)), small(sample(model, batch)))
    assert not torch.allclose(small(sample(model, 2)), model(sample(model, 2)), atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("network", [Residual, Tokens])
def test_inductor_goes_on_where_nothing_is_said(network: Callable[[], nn.Module]) -> None:
    model, plan = prepared(network)
    options: dict[str, Any] = {"plan": plan}
    run, small = torch.compile(model, backend=fxprune, options=options), shrunk(model, plan)
    for batch in (2, 3):
        torch.testing.assert_close(run(sample(model, batch)), small(sample(model, batch)), rtol=1e-4, atol=1e-5)


class Grouped(Residual):
    """A convolution in groups, each of which reads channels of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=2), nn.ReLU())


def test_groups_that_lose_different_channels() -> None:
    model, plan = prepared(Grouped)
    uneven = fp.Plan({**plan.kept, "stem.0.weight": [0, 1, 6, 7]})
    torch.testing.assert_close(compiled(model, uneven)(sample(model, 2)), shrunk(model, uneven)(sample(model, 2)))


def test_new_weights_get_through() -> None:
    model, plan = prepared(Residual)
    run = compiled(model, plan)
    before = run(sample(model, 2))
    with torch.no_grad():
        model.get_parameter("stem.0.weight").data.mul_(2)  # through .data: no version of the tensor tells
    torch.testing.assert_close(run(sample(model, 2)), shrunk(model, plan)(sample(model, 2)))
    assert not torch.allclose(run(sample(model, 2)), before)


def test_gradients_reach_what_stays_and_nothing_else() -> None:
    model, plan = prepared(Residual)
    compiled(model, plan, inner="aot_eager")(sample(model, 2)).square().sum().backward()
    weight = model.get_parameter("stem.0.weight")
    assert weight.grad is not None
    reached = weight.grad.flatten(1).abs().sum(1) > 0
    assert [unit for unit in range(8) if reached[unit]] == list(plan.kept["stem.0.weight"])


def test_a_plan_as_text_and_as_a_file(tmp_path: Path) -> None:
    model, plan = prepared(Residual)
    wanted = shrunk(model, plan)(sample(model, 2))
    (tmp_path / "plan.json").write_text(plan.to_json())
    for given in (plan.to_json(), str(tmp_path / "plan.json"), tmp_path / "plan.json"):
        torch._dynamo.reset()
        torch.testing.assert_close(compiled(model, given)(sample(model, 2)), wanted)


def test_a_model_that_was_never_captured_is_checked_with_the_inputs_of_the_plan() -> None:
    model, plan = prepared(Residual)
    wanted = shrunk(model, plan)(sample(model, 2))
    other = Residual().eval()
    other.load_state_dict(model.state_dict())
    named = fp.Plan(plan.kept, inputs=[((2, 3, 8, 8), "torch.float32")])
    torch.testing.assert_close(compiled(other, named)(sample(model, 2)), wanted)
    torch._dynamo.reset()
    third = Residual().eval()
    assert "call fxprune.capture(model, example_inputs) first" in str(refusal(compiled(third, plan), sample(model, 2)))


def test_a_function_around_the_model() -> None:
    model, plan = prepared(Residual)
    run = compiled(lambda x: model(x).softmax(-1), plan)
    torch.testing.assert_close(run(sample(model, 2)), shrunk(model, plan)(sample(model, 2)).softmax(-1))


def test_a_part_without_parameters_is_handed_on() -> None:
    run = compiled(lambda x: x.square(), fp.Plan({"absent": [0]}))
    assert torch.equal(run(torch.arange(3.0)), torch.tensor([0.0, 1.0, 4.0]))


class Partial(Residual):
    """The forward comes in two graphs."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        torch._dynamo.graph_break()
        return self.head((self.around(x) + self.outer(self.inner(x))).mean((2, 3)))


def test_refuses_a_forward_in_several_graphs() -> None:
    model, plan = prepared(Residual)
    parts = Partial().eval()
    fp.capture(parts, sample(model, 2))
    options: dict[str, Any] = {"plan": plan, "inner": "eager"}
    error = refusal(torch.compile(parts, backend=fxprune, options=options), sample(model, 2))
    assert isinstance(error, PlanError)
    assert "the plan names group 'stem.0.weight', which this network does not have" in str(error)
    assert "compile the planned module with fullgraph=True" in str(error)


class Options(nn.Module):
    """A forward in which more can shrink when the caller asks for less."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 4)

    def forward(self, x: Tensor, also: bool = True) -> Any:
        x = torch.relu(self.first(x))
        return (self.second(x), x[:, :3]) if also else self.second(x)


def test_refuses_where_another_part_would_leave_than_in_the_module() -> None:
    model = Options().eval()
    (group,) = fp.analyze(fp.capture(model, torch.randn(2, 6))).groups
    assert group.width == 5  # units 3 to 7 of the layer: the first three are an output
    run = compiled(lambda x: model(x, also=False), fp.Plan({group.name: range(2)}))
    error = refusal(run, torch.randn(2, 6))
    assert isinstance(error, PlanError)
    assert "the plan leaves another part of `first.weight` in this graph than in the module by itself" in str(error)


def test_refuses_a_model_in_training() -> None:
    model, plan = prepared(Residual)
    error = refusal(compiled(model.train(), plan), sample(model, 2))
    assert isinstance(error, CaptureError)
    assert "call model.eval() before it is compiled" in str(error)


def test_refuses_two_models_in_one_graph() -> None:
    model, plan = prepared(Residual)
    other = Residual().eval()
    error = refusal(compiled(lambda x: model(x) + other(x), plan), sample(model, 2))
    assert isinstance(error, CaptureError)
    assert re.search("the graph reads parameters of .* and of .*: compile the one that is planned", str(error))


class Frozen(Residual):
    """Gradients stop before the head."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
            x = self.around(x) + self.outer(self.inner(x))
        return self.head(x.mean((2, 3)))


def test_refuses_gradients_that_are_switched_off_in_places() -> None:
    model, plan = prepared(Frozen)
    error = refusal(compiled(model, plan), sample(model, 2))
    assert isinstance(error, CaptureError)
    assert "the forward switches gradients off in places, which is not kept" in str(error)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model, plan)(sample(model, 2)), shrunk(model, plan)(sample(model, 2)))


def test_refuses_fused_attention() -> None:
    model, plan = prepared(Tokens)
    with torch.no_grad():
        error = refusal(compiled(model, plan), sample(model, 2))
    assert isinstance(error, CaptureError)
    assert "torch.backends.mha.set_fastpath_enabled(False)" in str(error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs options="),
        ({"plan": 3}, "needs options="),
        ({"plan": "absent.json"}, "the plan at absent.json cannot be read: No such file or directory"),
        ({"plan": "{}"}, "this is not a plan written by Plan.to_json"),
        ({"plan": fp.Plan({}), "speed": 1}, "backend fxprune has no option 'speed'; there are: inner, plan"),
        ({"plan": fp.Plan({"absent": [0]})}, "the plan names group 'absent'"),
        ({"plan": fp.Plan({"stem.0.weight": [9]})}, "keeps units \\[9\\] of group 'stem.0.weight'"),
    ],
)
def test_refuses_what_is_no_plan(options: dict[str, Any], message: str) -> None:
    model, _ = prepared(Residual)
    error = refusal(torch.compile(model, backend=fxprune, options={"inner": "eager", **options}), sample(model, 2))
    assert isinstance(error, PlanError)
    assert re.search(message, str(error))


def test_found_by_its_name_once_installed(tmp_path: Path) -> None:
    """What an installation writes beside the package makes the name known to torch."""
    table = re.search(
        r"\[project\.entry-points\.torch_dynamo_backends\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL
    )
    assert table is not None
    installed = tmp_path / "fxprune_installed-0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: fxprune-installed\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(f"[torch_dynamo_backends]\n{table[1].replace(chr(34), '')}\n")
    program = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n"
        "import torch, torch._dynamo\n"
        "from torch._dynamo.backends.registry import lookup_backend\n"
        "assert 'fxprune' in torch._dynamo.list_backends()\n"
        "print(lookup_backend('fxprune').__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "fxprune.backend\n", done.stderr


def test_refuses_a_graph_that_holds_its_parameters() -> None:
    model, plan = prepared(Residual)
    with pytest.raises(CaptureError, match="the graph holds its parameters, .*: use the backend through torch.compile"):
        fxprune(fx.symbolic_trace(model), [sample(model, 2)], options={"plan": plan})
