"""Exported programs: shrunk and pruned to exported programs with the same signature, saved and loaded elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

import fxprune as fp
from fxprune.errors import BudgetError, CaptureError
from fxprune.passes.shrink import Shrink
from tests.networks import build, images, random_plan


def exported(model: nn.Module, *inputs: Tensor) -> ExportedProgram:
    return export(model.eval(), inputs, dynamic_shapes=tuple({0: Dim.AUTO} for _ in inputs))


class Stateful(nn.Module):
    """Writes into a buffer and into its input, and holds a constant and a parameter that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.spare = nn.Linear(4, 6), nn.Linear(6, 2), nn.Parameter(torch.rand(3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.get_buffer("calls").add_(1)
        x.mul_(2)
        y = self.last(torch.relu(self.first(x))) * self.get_buffer("calls")
        return y, y * torch.tensor([1.0, 2.0])


@pytest.mark.parametrize("decomposed", [False, True], ids=["training", "inference"])
@pytest.mark.parametrize("name", ["Residual", "Shuffle", "LayerScaled", "Tied"])
def test_a_shrunk_program_is_the_shrunk_graph_with_the_same_signature(name: str, decomposed: bool) -> None:
    program = exported(build(name), images())
    program = program.run_decompositions({}) if decomposed else program
    gm = fp.capture(program)
    plan = random_plan(fp.analyze(gm), seed=2, balanced=True)
    small = fp.shrink(program, plan)
    assert isinstance(small, ExportedProgram)
    before, after = program.graph_signature, small.graph_signature
    assert before.input_specs == after.input_specs
    assert [spec.kind for spec in before.output_specs] == [spec.kind for spec in after.output_specs]
    assert list(small.state_dict) == list(program.state_dict)
    assert str(small.range_constraints) == str(program.range_constraints)
    assert sum(map(torch.numel, small.state_dict.values())) < sum(map(torch.numel, program.state_dict.values()))
    stacks, kept = ({node.name: node.meta.get("nn_module_stack") for node in p.graph.nodes} for p in (program, small))
    assert all(stacks[name] == stack for name, stack in kept.items() if name in stacks)
    shapes = {node.name: node.meta["val"].shape for node in small.graph.nodes if node.op == "placeholder"}
    for spec in after.input_specs:
        if spec.target is not None:
            assert shapes[spec.arg.name] == small.state_dict[spec.target].shape
    again = reloaded(small)
    for batch in (1, 3):
        torch.testing.assert_close(again.module()(images(batch)), fp.shrink(gm, plan)(images(batch)))


def reloaded(program: ExportedProgram) -> ExportedProgram:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


@pytest.mark.parametrize("decomposed", [False, True], ids=["training", "inference"])
def test_writes_into_buffers_and_inputs_stay(decomposed: bool) -> None:
    model, x = Stateful(), torch.randn(3, 4)
    program = exported(model, x.clone())
    program = program.run_decompositions({}) if decomposed else program
    small = fp.shrink(program, fp.Plan({"first.weight": range(6)}))
    network = reloaded(small).module()
    for _ in range(2):
        given, taken = torch.randn(3, 4), torch.empty(3, 4)
        taken.copy_(given)
        for found, wanted in zip(network(taken), model(given), strict=True):
            torch.testing.assert_close(found, wanted)
        assert torch.equal(given, taken)
    assert torch.equal(network.get_buffer("calls"), model.get_buffer("calls"))


def test_a_program_is_pruned_to_a_budget_and_to_a_module() -> None:
    program, data = exported(build("Residual"), images()), torch.randn(40, 3, 8, 8)
    budget = fp.Budget(params=0.7)
    small = fp.prune_exported(program, budget=budget, calibration=data, recipe="fast")
    sizes = [sum(p.numel() for p in item.parameters()) for item in (program, small)]
    assert sizes[1] <= 0.7 * sizes[0]
    assert [spec.arg.name for spec in small.graph_signature.input_specs] == [
        spec.arg.name for spec in program.graph_signature.input_specs
    ]
    assert "batch_norm" in str(small.graph)
    result = fp.prune(program, budget=budget, calibration=data, recipe="fast")
    torch.testing.assert_close(small.module()(images()), result.model(images()))
    torch.testing.assert_close(result.program().module()(images(5)), result.model(images(5)))


def test_a_shrunk_program_loads_where_fxprune_is_not(tmp_path: Path) -> None:
    program = exported(build("Residual"), images())
    small = fp.shrink(program, fp.Plan({"conv1.0.weight": [0, 2]}))
    torch.export.save(small, tmp_path / "small.pt2")
    torch.save((images(3), small.module()(images(3))), tmp_path / "pair.pt")
    script = """
        import sys
        sys.modules["fxprune"] = None
        import torch
        x, wanted = torch.load("pair.pt")
        torch.testing.assert_close(torch.export.load("small.pt2").module()(x), wanted)
        """
    subprocess.run([sys.executable, "-c", dedent(script)], cwd=tmp_path, check=True)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("named", [False, True], ids=["automatic", "named"])
def test_a_dynamic_batch_and_image_size_stay(strict: bool, named: bool) -> None:
    free = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    limited = {0: Dim("batch"), 2: Dim("height", min=4, max=64), 3: Dim("width", min=4, max=64)}
    model, x = build("Residual"), torch.randn(2, 3, 8, 10)
    program = export(model, (x,), dynamic_shapes=(limited if named else free,), strict=strict)
    data = torch.randn(32, 3, 8, 10)
    small = fp.prune_exported(program, budget=fp.Budget(flops=0.6), calibration=data, recipe="fast")
    assert list(small.state_dict) == list(program.state_dict) and set(small.state_dict) == set(model.state_dict())
    for found in (small, reloaded(small)):
        assert str(found.range_constraints) == str(program.range_constraints)
        assert str(input_shape(found)) == str(input_shape(program))
        for network in (found.module(), program.module()):  # what was given takes all sizes still, too
            for batch, height, width in ((1, 8, 10), (5, 16, 12), (2, 32, 4)):
                assert network(torch.randn(batch, 3, height, width)).shape == (batch, 3)


def input_shape(program: ExportedProgram) -> torch.Size:
    """Of the last input, which is the user's."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    return placeholders[-1].meta["val"].shape


class TiedAndUnread(nn.Module):
    """Two names of one weight, and a parameter and a buffer that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.first, self.second, self.last = (
            nn.Linear(*sizes) for sizes in ((4, 6), (6, 6), (6, 6), (6, 2))
        )
        self.second.weight, self.spare = self.first.weight, nn.Parameter(torch.rand(3))
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(torch.relu(self.enter(x)))))))


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_tensors_that_the_graph_does_not_read_keep_their_names(strict: bool) -> None:
    model = TiedAndUnread().eval()
    program = export(model, (torch.randn(2, 4),), dynamic_shapes=({0: Dim.AUTO},), strict=strict)
    gm = fp.capture(program)
    (group,) = fp.analyze(gm).groups
    plan = fp.Plan({group.name: [0, 1, 4]})
    small = fp.shrink(program, plan)
    assert list(small.state_dict) == list(program.state_dict)
    assert small.state_dict["first.weight"] is small.state_dict["second.weight"]
    assert torch.equal(small.state_dict["spare"], model.spare) and int(small.state_dict["count"]) == 7
    x = torch.randn(5, 4)
    torch.testing.assert_close(reloaded(small).module()(x), fp.shrink(gm, plan)(x))


def test_statistics_of_a_program_in_training_are_written_where_they_were() -> None:
    torch.manual_seed(0)
    model, x = build("Residual").train(), torch.randn(4, 3, 8, 8)
    program = export(model, (x,), dynamic_shapes=({0: Dim.AUTO},))
    small = fp.prune_exported(program, budget=fp.Budget(params=0.7), recipe="magnitude")
    assert [spec.target for spec in small.graph_signature.output_specs] == [
        spec.target for spec in program.graph_signature.output_specs
    ]
    network = reloaded(small).module()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(x)
    moved = {name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == set(before) == {name for name, _ in model.named_buffers()}


def test_an_impossible_plan_is_refused() -> None:
    with pytest.raises(fp.PlanError, match="the plan names group 'nobody'"):
        fp.shrink(exported(build("Plain"), images()), fp.Plan({"nobody": [0]}))


def test_what_is_no_program_graph_or_plan_is_refused() -> None:
    model, half = build("Plain"), fp.Budget(params=0.6)
    with pytest.raises(CaptureError, match="Plain is no ExportedProgram: fxprune.prune takes modules"):
        fp.prune_exported(model, budget=half, recipe="magnitude")  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match=r"Plain is no graph: fxprune.shrink\(fxprune.capture\(model"):
        fp.shrink(model, fp.Plan({}))  # type: ignore[call-overload]
    gm, units = fp.capture(model, images()), {"fc1.weight": [0]}
    for refused in (
        lambda: fp.shrink(gm, units),  # type: ignore[call-overload]
        lambda: Shrink(units)(gm),  # type: ignore[arg-type]
        lambda: fp.verify(gm, gm, units),  # type: ignore[arg-type]
    ):
        with pytest.raises(fp.PlanError, match=r"plan must be a Plan, not dict: Plan\(kept\)"):
            refused()
    with pytest.raises(BudgetError, match="budget must be a Budget, e.g. .*, not float"):
        fp.prune_exported(exported(model, images()), budget=0.5, recipe="magnitude")  # type: ignore[arg-type]


def test_a_program_in_core_aten_says_what_to_give_instead() -> None:
    program = exported(build("Residual"), images()).run_decompositions()
    with pytest.raises(fp.PlanError, match=r"more reasons.*give the program before run_decompositions\(\)") as refused:
        fp.prune_exported(program, budget=fp.Budget(params=0.6), recipe="magnitude")
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_a_program_is_pruned_to_modules_with_the_names_of_the_original(strict: bool) -> None:
    model = build("Residual").eval()
    program = export(model, (images(),), dynamic_shapes=({0: Dim.AUTO},), strict=strict)
    result = fp.prune(program, budget=fp.Budget(params=0.6), recipe="magnitude")
    assert set(result.model.state_dict()) == set(program.state_dict)
    assert "F.batch_norm" not in result.model.code
    again = fp.prune(result.program(), budget=fp.Budget(params=0.9), recipe="magnitude")
    assert set(again.model.state_dict()) == set(program.state_dict)
