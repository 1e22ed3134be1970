"""Initialise: who draws, who keeps, that copies are no twins, and that the user's own random numbers stay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune as fp
from fxprune.errors import RewriteError
from fxprune.passes.base import clone
from fxprune.passes.initialise import Initialise
from fxprune.passes.lift import Lift
from tests.networks import build, captured, images, inputs, modified


def lifted(name: str, kept: dict[str, list[int]]) -> fx.GraphModule:
    """A network shrunk or widened by a plan, of modules."""
    gm = fp.shrink(captured(name), fp.Plan(kept, widens=True))
    Lift()(gm)
    return gm


def weights(gm: fx.GraphModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in gm.state_dict().items()}


def changed(before: dict[str, Tensor], gm: fx.GraphModule) -> set[str]:
    return {name for name, tensor in gm.state_dict().items() if not torch.equal(tensor, before[name])}


def test_all_modules_draw_as_their_constructors_do() -> None:
    gm = lifted("Residual", {"conv1.0.weight": [*range(6), 0, 0]})
    before = weights(gm)
    assert modified(Initialise(seed=3)(gm))
    assert changed(before, gm) == set(before) - {name for name in before if name.endswith("num_batches_tracked")}
    torch.manual_seed(3)
    last = nn.Linear(4, 3)  # the modules draw in reverse order, so that the last one is the first
    assert torch.equal(gm.get_parameter("head.weight"), last.weight)
    assert torch.equal(gm.get_parameter("head.bias"), last.bias)
    kernel = nn.Conv2d(8, 4, 3, padding=1, bias=False).weight
    assert torch.equal(gm.get_parameter("conv2.0.weight"), kernel)


def test_statistics_of_batch_norm_start_over() -> None:
    gm = lifted("Residual", {"stem.0.weight": [0, 1, 1]})
    gm.get_buffer("stem.1.num_batches_tracked").fill_(7)
    Initialise()(gm)
    assert torch.equal(gm.get_buffer("stem.1.running_mean"), torch.zeros(3))
    assert torch.equal(gm.get_buffer("stem.1.running_var"), torch.ones(3))
    assert torch.equal(gm.get_parameter("stem.1.weight"), torch.ones(3))
    assert int(gm.get_buffer("stem.1.num_batches_tracked")) == 0


def test_only_what_the_plan_changed_draws() -> None:
    gm = lifted("Plain", {"conv1.weight": [0, 1]})
    before = weights(gm)
    assert modified(Initialise(everything=False)(gm))
    assert changed(before, gm) == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}


def test_a_layer_of_the_old_shape_with_copies_draws_too() -> None:
    gm = lifted("Plain", {"fc1.weight": [0, 1, 2, 3, 3]})
    before = weights(gm)
    Initialise(everything=False)(gm)
    assert changed(before, gm) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


def test_nothing_to_draw_is_no_change() -> None:
    gm = lifted("Plain", {})
    before = weights(gm)
    assert not modified(Initialise(everything=False)(gm))
    assert changed(before, gm) == set()


def test_a_second_run_changes_nothing() -> None:
    gm = lifted("Residual", {"conv1.0.weight": [0, 1]})
    assert modified(Initialise()(gm))
    before = weights(gm)
    assert not modified(Initialise(seed=1)(gm))
    assert changed(before, gm) == set()


def test_the_seed_decides_and_the_global_generator_stays() -> None:
    drawn = []
    for seed in (0, 0, 1):
        gm = lifted("Depthwise", {"expand.0.weight": [*range(8)] * 2})
        state = torch.random.get_rng_state()
        Initialise(seed=seed)(gm)
        assert torch.equal(torch.random.get_rng_state(), state)
        drawn.append(gm.get_parameter("depth.0.weight"))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_tied_parameter_is_drawn_by_the_first_module_that_has_it() -> None:
    gm = fp.capture(_Words(), (torch.zeros(2, 5, dtype=torch.int64),))
    name = fp.analyze(gm).groups[0].name
    wide = fp.shrink(gm, fp.Plan({name: [*range(64)] * 2}, widens=True))
    Lift()(wide)
    Initialise()(wide)
    table = wide.get_parameter("embed.weight")
    assert table is wide.get_parameter("head.weight")
    assert table.shape == (300, 128)
    spread = float(table.detach().std())
    assert abs(spread - 1) < 0.02, "an embedding draws from N(0, 1), a linear layer within 1 / sqrt(128)"


class _Words(nn.Module):
    """An embedding that is read backwards at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(300, 64), nn.Linear(64, 300, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.embed(x)))


def test_what_no_module_owns_keeps_its_values_and_is_named() -> None:
    gm = lifted("LayerScaled", {})
    before = weights(gm)
    Initialise()(gm)
    assert torch.equal(gm.get_parameter("scale"), before["scale"])
    notes = gm.meta["fxprune"]["initialise_notes"]
    assert notes == ("`scale` is not drawn anew, as no module draws it by itself: it keeps its values",)


def test_copies_in_what_no_module_owns_are_no_twins() -> None:
    name = "MultiheadAttention"
    gm = captured(name)
    groups = {group.name: group for group in fp.analyze(gm).groups}
    wide = lifted(name, {"mix.in_proj_weight": [*range(groups["mix.in_proj_weight"].width)] * 2})
    before = weights(wide)["mix.in_proj_weight"]
    Initialise(everything=False)(wide)
    after = wide.get_parameter("mix.in_proj_weight").detach()
    assert len(torch.unique(before, dim=0)) == len(before) // 2
    assert len(torch.unique(after, dim=0)) == len(after)
    assert len({tuple(row) for row in before.tolist()} & {tuple(row) for row in after.tolist()}) == len(after) // 2
    assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
    note = "`mix.in_proj_weight` is not drawn anew, as no module draws it by itself: its copies hold other values"
    assert any(line.startswith(note) for line in wide.meta["fxprune"]["initialise_notes"])


def test_kind_and_flags_of_parameters_stay() -> None:
    model = build("Residual").to(torch.float64)
    model.get_parameter("head.weight").requires_grad_(False)
    gm = fp.capture(model, images().double())
    small = fp.shrink(gm, fp.Plan({"conv1.0.weight": [0, 1]}))
    Lift()(small)
    before = dict(small.named_parameters())
    Initialise()(small)
    after = dict(small.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert [name for name, p in after.items() if not p.requires_grad] == ["head.weight"]
    assert {p.dtype for p in after.values()} == {torch.float64}


@pytest.mark.parametrize("draws", [False, True])
def test_copies_train_alike_unless_they_are_drawn(draws: bool) -> None:
    gm = lifted("Residual", {"conv1.0.weight": [*range(6)] * 2})
    if draws:
        Initialise(everything=False)(gm)
    gm.train()
    optimizer = torch.optim.SGD(gm.parameters(), lr=0.1)
    for _ in range(3):
        loss = nn.functional.cross_entropy(gm(images()), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rows = gm.get_parameter("conv1.0.weight").detach().flatten(1)
    twins = torch.cdist(rows, rows).fill_diagonal_(math.inf).min(1).values < 1e-5
    assert twins.tolist() == [not draws] * 12


def test_a_graph_of_operators_is_refused() -> None:
    with pytest.raises(RewriteError, match="Initialise needs a graph of modules: run Lift first"):
        Initialise()(fp.shrink(captured("Plain"), fp.Plan({})))


def test_what_was_never_shrunk_has_nothing_to_be_compared_with() -> None:
    gm = clone(captured("Plain"))
    Lift()(gm)
    with pytest.raises(RewriteError, match="Initialise needs dense, plan, coupling"):
        Initialise(everything=False)(gm)
    assert modified(Initialise()(gm))
    assert gm(*inputs("Plain")).shape == (2, 3)


def test_numbers_that_are_not_finite_are_found() -> None:
    gm = lifted("LayerScaled", {})
    with torch.no_grad():
        gm.get_parameter("scale")[0] = math.nan
    with pytest.raises(RewriteError, match="Initialise left NaN or infinity in `scale`"):
        Initialise()(gm)
