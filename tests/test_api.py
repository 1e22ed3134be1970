"""The whole path on small networks: what comes out, what is refused, and what is left alone."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.fx import symbolic_trace
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import fxprune as fp
from fxprune.calibrate.images import calibration_for
from fxprune.errors import BudgetError, CalibrationError, FxpruneError, InputError, WeightsError
from tests.networks import NETWORKS, build, images

HALF = fp.Budget(flops=0.5)
DATA = images(batch=48)


def pruned(name: str = "Residual", **options: Any) -> fp.Result:
    """By the quickest recipe that corrects anything, where the recipe does not matter."""
    return fp.prune(build(name), images(), **{"budget": HALF, "calibration": DATA, "recipe": "fast", **options})


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"Shuffle", "Tied"}))
def test_a_budget_is_met_and_missed_by_less_than_the_cheapest_unit(name: str) -> None:
    budget = fp.Budget(flops=0.6, params=0.75)
    result = pruned(name, budget=budget)
    gm = fp.capture(build(name), images())
    cost = fp.cost(gm, result.coupling)
    limits = budget.absolute(cost.evaluate())
    widths = {group.name: group.after for group in result.report.groups}
    spent = cost.evaluate(widths)
    assert result.report.after == spent
    assert all(spent[kind] <= limit for kind, limit in limits.items())
    for group in result.coupling.groups:
        if widths[group.name] < group.width:
            more = cost.evaluate({**widths, group.name: widths[group.name] + group.step})
            assert any(more[kind] > limit for kind, limit in limits.items()), group.name
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        result.model(images(batch=1))
    assert counter.get_total_flops() == spent["flops"]
    assert sum(parameter.numel() for parameter in result.model.parameters()) == spent["params"]


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"Shuffle", "Tied"}))
def test_reconstruction_helps_and_leaves_nothing_behind(name: str) -> None:
    model = build(name)
    result = pruned(name, recipe="psp")
    bare = fp.prune(model, images(), budget=HALF, recipe="magnitude")
    fresh = images(batch=64, seed=9)
    with torch.no_grad():
        wanted = model(fresh)
        error, without = ((net.model(fresh) - wanted).square().mean() for net in (result, bare))
    assert error < without
    assert "torch.ops" not in result.model.code
    assert "correction" not in result.model.code
    assert set(result.model.state_dict()) == set(model.state_dict())
    assert result.report.verification is not None
    assert result.report.verification.ok


def test_the_code_reads_as_written_by_a_person() -> None:
    assert pruned("Residual").model.code.strip() == (
        "def forward(self, x: Tensor) -> Tensor:\n"
        "    x = self.stem[0](x)\n"
        "    x = self.stem[1](x)\n"
        "    x = F.relu(x)\n\n"
        "    y = self.conv1[0](x)\n"
        "    y = self.conv1[1](y)\n"
        "    y = F.relu(y)\n\n"
        "    y = self.conv2[0](y)\n"
        "    y = self.conv2[1](y)\n\n"
        "    x = x + y\n"
        "    x = F.relu(x)\n"
        "    x = x.mean((2, 3))\n"
        "    x = self.head(x)\n"
        "    return x"
    )


def test_the_model_of_the_user_is_left_alone() -> None:
    model = build("Residual").train()
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    result = fp.prune(model, images(), budget=HALF, calibration=DATA)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert not result.model.training
    shared = {id(t) for t in model.state_dict(keep_vars=True).values()}
    assert not shared & {id(t) for t in result.model.state_dict(keep_vars=True).values()}


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second = (pruned(seed=3, recipe="psp") for _ in range(2))
    assert first.plan == second.plan
    values = second.model.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in first.model.state_dict().items())


def _as_dataset() -> DataLoader[Any]:
    return DataLoader(TensorDataset(DATA, torch.zeros(48)), batch_size=16)


@pytest.mark.parametrize(
    "data",
    [DATA, list(DATA.split(16)), [(part, None) for part in DATA.split(16)], [{"x": DATA}], _as_dataset()],
    ids=["tensor", "list", "tuples", "dicts", "loader"],
)
def test_calibration_in_every_form_gives_the_same_result(data: Any) -> None:
    assert pruned(calibration=data).plan == pruned().plan


def test_a_result_does_not_keep_the_images_alive() -> None:
    for recipe in ("fast", "psp"):  # the graphs that psp hands on are two more
        given = calibration_for(fp.capture(build("Residual"), images()), DATA)
        known = weakref.ref(given)
        result = pruned(calibration=given, recipe=recipe)
        del given
        gc.collect()
        assert known() is None and result.diff()


def test_every_kind_of_model_gives_the_same_plan() -> None:
    model = build("Residual")
    program = export(model, (images(),), dynamic_shapes=({0: Dim.AUTO},))
    wanted = pruned().plan
    for given in (symbolic_trace(model), program, fp.capture(model, images())):
        result = fp.prune(given, images(), budget=HALF, calibration=DATA, recipe="fast")
        assert result.plan == wanted
        assert result.model(images(3)).shape == (3, 3)


def test_widths_are_multiples_where_asked() -> None:
    widths = [(group.before, group.after) for group in pruned("Grouped", multiple_of=4).report.groups]
    assert all(after == before or after % 4 == 0 for before, after in widths)
    assert any(after < before for before, after in widths)


@pytest.mark.parametrize("pattern", ["fc1.weight", "fc1", "f?1.*", "fc*"])
def test_what_is_frozen_keeps_its_shape(pattern: str) -> None:
    result = pruned("Plain", freeze=[pattern], budget=fp.Budget(params=0.8))
    assert [group.name for group in result.report.groups if group.after < group.before] == ["conv1.weight"]
    assert result.model.get_parameter("fc1.weight").shape == (5, 16)


def test_no_group_loses_more_than_max_ratio() -> None:
    result = pruned(max_ratio=0.5)
    assert all(group.after >= group.before / 2 for group in result.report.groups)


def test_program_is_strict_and_dynamic() -> None:
    result = pruned()
    program = result.program()
    for batch in (1, 5):
        assert torch.allclose(program.module()(images(batch)), result.model(images(batch)), atol=1e-6)


def test_saved_files_load_without_fxprune(tmp_path: Path) -> None:
    result = pruned()
    result.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.py",
        "model.safetensors",
        "plan.json",
        "report.json",
    ]
    torch.save((DATA, result.model(DATA)), tmp_path / "io.pt")
    script = (
        "import sys; sys.modules['fxprune'] = None; sys.path.insert(0, 'out')\n"
        "import torch, model\n"
        "from safetensors.torch import load_file\n"
        "network = model.Residual(); network.load_state_dict(load_file('out/model.safetensors'))\n"
        "x, y = torch.load('io.pt'); assert torch.allclose(network.eval()(x), y, atol=1e-6)\n"
        "network.train()(x).sum().backward()\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert fp.Plan.from_json((tmp_path / "out" / "plan.json").read_text()) == result.plan


def test_the_plan_applies_to_the_users_own_class() -> None:
    model = build("Residual").train()
    result = fp.prune(model, images(), budget=HALF, calibration=DATA, recipe="fast")
    twin = fp.Plan.from_json(result.plan.to_json()).apply(build("Residual"))
    assert type(twin) is type(model)
    shapes = {name: value.shape for name, value in result.model.state_dict().items()}
    assert {name: value.shape for name, value in twin.state_dict().items()} == shapes


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    pruned(recipe="psp", progress=lambda stage, done, total: told.append((stage, done, total)))
    stages = dict.fromkeys(stage for stage, _, _ in told)
    assert {"observe", "measure", "squeeze", "reconstruct", "refine"} <= set(stages)
    assert all(any(s == stage and done == total for s, done, total in told) for stage in stages)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": 0.5}, FxpruneError, "budget must be a Budget"),
        ({"budget": fp.Budget(flops=1e-4)}, BudgetError, "cannot be reached: the smallest is"),
        ({"budget": fp.Budget(flops=0.5), "freeze": ["*"]}, BudgetError, "cannot be reached"),
        ({"freeze": ["nothing"]}, fp.PlanError, "freeze='nothing' matches no"),
        (
            {"recipe": "slow"},
            fp.PlanError,
            "recipe 'slow' is not known; there are: fast, psp, best, datafree",
        ),
        ({"calibration": None}, CalibrationError, "calibration is missing"),
        ({"calibration": []}, CalibrationError, "no images"),
        ({"calibration": torch.zeros(0, 3, 8, 8)}, CalibrationError, "no images"),
        ({"calibration": torch.full((4, 3, 8, 8), torch.nan)}, CalibrationError, "holds NaN or infinity"),
        ({"calibration": torch.zeros(4, 1, 8, 8)}, CalibrationError, r"shape \(4, 1, 8, 8\) does not fit"),
        ({"calibration": torch.zeros(4, 3, 8, 8).double()}, CalibrationError, "dtype torch.float64"),
    ],
)
def test_mistakes_are_explained(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pruned(**options)


@pytest.mark.parametrize("budget", [fp.Budget(flops=1e-4), fp.Budget(params=1e-4, max_error=0.1)])
def test_a_budget_that_cannot_be_reached_is_refused_before_the_images_are_read(budget: fp.Budget) -> None:
    def unread() -> Iterator[Tensor]:
        pytest.fail("the images were read")
        yield images()

    with pytest.raises(BudgetError, match="cannot be reached"):
        pruned(budget=budget, calibration=unread())


def test_a_network_that_cannot_shrink_says_why() -> None:
    with pytest.raises(fp.PlanError, match="nothing in this network can shrink: .*an output of the network"):
        fp.prune(nn.Linear(3, 4), torch.randn(2, 3), budget=HALF, calibration=torch.randn(8, 3))


def test_an_example_that_does_not_fit() -> None:
    with pytest.raises(InputError, match="does not run on the example inputs"):
        fp.prune(build("Residual"), torch.randn(2, 4, 8, 8), budget=HALF, calibration=DATA)


def test_an_interrupt_leaves_the_model_alone() -> None:
    model = build("Residual").train()
    before = copy.deepcopy(model.state_dict())

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fp.prune(model, images(), budget=HALF, calibration=DATA, progress=interrupt)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Odd(nn.Module):
    """A forward that counts in a buffer, casts, makes tensors and random numbers, and returns more than tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)
        self.register_buffer("count", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None, int]:
        y = torch.relu(self.a(x + 0.1 * torch.randn_like(x)))
        self.get_buffer("count").add_(y.mean((0, 2, 3)))
        y = torch.relu(self.b(y).float())
        return self.head(self.c(y).mean((2, 3)) @ torch.eye(8)), None, 3


def test_odd_forwards_are_proven_and_write_into_nobodys_buffers() -> None:
    model = Odd().eval()
    result = fp.prune(model, images(), budget=fp.Budget(flops=0.8), calibration=DATA)
    assert result.report.verification is not None
    assert result.report.verification.max_error < 1e-12
    assert not model.get_buffer("count").any()
    assert not result.model.get_buffer("count").any()
    assert result.model(images())[1:] == (None, 3)


@pytest.mark.parametrize("recipe", ["psp", "datafree"])
@pytest.mark.parametrize("name", ["head.weight", "stem.1.running_var"])
def test_weights_that_are_not_finite_are_named(name: str, recipe: str) -> None:
    model = build("Residual")
    model.state_dict()[name].view(-1)[0] = torch.nan
    with pytest.raises(WeightsError, match=f"`{name}` holds NaN"):
        fp.prune(model, images(), budget=HALF, calibration=None if recipe == "datafree" else DATA, recipe=recipe)


class UnderMask(nn.Module):
    """Attention under a mask that is added: minus infinity above the diagonal."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) + self.mask
        return self.out(scores.softmax(-1) @ self.v(x))


def test_a_mask_may_hold_infinity() -> None:
    tokens = torch.randn(96, 6, 8)
    result = fp.prune(UnderMask().eval(), tokens[:2], budget=fp.Budget(flops=0.7), calibration=tokens, recipe="fast")
    assert result.report.verification is not None and result.report.verification.ok


def test_another_default_device_changes_nothing() -> None:
    wanted = pruned("Plain", recipe="psp").model
    model = build("Plain")
    torch.set_default_device("meta")  # whatever names no device has no values
    try:
        found = fp.prune(model, DATA[:2], budget=HALF, calibration=DATA)
    finally:
        torch.set_default_device("cpu")
    assert torch.equal(found.model(DATA), wanted(DATA))


def test_a_seed_is_a_number() -> None:
    with pytest.raises(InputError, match="seed='a' must be a whole number"):
        pruned(seed="a")


def test_the_program_keeps_every_size_that_was_dynamic() -> None:
    sizes = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    budget = fp.Budget(flops=0.7)
    result = fp.prune(build("Residual"), images(), budget=budget, recipe="magnitude", dynamic_shapes=(sizes,))
    program = result.program().module()
    for shape in ((1, 3, 8, 8), (5, 3, 16, 12)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), result.model(x))


class LearningInEvaluation(nn.Module):
    """A BatchNorm whose statistics every forward writes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        own = self.norm
        x = nn.functional.batch_norm(self.conv(x), own.running_mean, own.running_var, training=True)
        return self.last(x.relu()).mean((2, 3))


def test_statistics_that_a_forward_writes_are_left_alone() -> None:
    model, data = LearningInEvaluation().eval(), torch.randn(96, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fp.prune(model, data[:2], budget=fp.Budget(flops=0.6), calibration=data, recipe="fast", verify=False)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
