"""Inputs from the network alone: statistics that match, seeds, ids, and networks that offer nothing to match."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune as fp
from fxprune.calibrate.images import calibration_for
from fxprune.calibrate.synthesise import synthesised
from fxprune.capture import capture
from fxprune.errors import CalibrationError
from tests.networks import NETWORKS, Plain, build, images


class Trained(nn.Module):
    """A network whose BatchNorms hold the statistics of dark, coloured, smooth images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return self.head(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


MEAN, DEVIATION = torch.tensor([120.0, 90.0, 60.0]), torch.tensor([30.0, 40.0, 50.0])


def seen(count: int) -> Tensor:
    """Images of smooth patches, with values as in a file."""
    patches = torch.randn(count, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return MEAN.view(3, 1, 1) + DEVIATION.view(3, 1, 1) * patches


def trained() -> nn.Module:
    model = Trained()
    for norm in (model.norm1, model.norm2):
        norm.momentum = None  # the plain average
    with torch.no_grad():
        model.train()(seen(512))  # the second sees the first one's output, normalised by the batch
    return model.eval()


def mismatch(model: nn.Module, x: Tensor) -> float:
    """The largest difference of a channel mean from the running one, in running deviations."""
    worst: list[float] = []

    def compare(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        difference = args[0].mean((0, 2, 3)) - norm.running_mean
        worst.append(float((difference / norm.running_var.sqrt()).abs().max()))

    hooks = [m.register_forward_pre_hook(compare) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return max(worst)


def test_batch_norms_see_what_they_expect() -> None:
    model = trained()
    gm = capture(model, (torch.randn(2, 3, 16, 16),))
    (x,) = synthesised(gm, 64, steps=30)
    assert x.shape == (64, 3, 16, 16)
    assert mismatch(model, x) < 0.15
    assert mismatch(model, seen(64)) < 0.3  # the statistics are those of real images
    assert mismatch(model, torch.randn(64, 3, 16, 16)) > 1  # and say something


def test_colours_are_found_from_the_statistics_alone() -> None:
    (x,) = synthesised(capture(trained(), (torch.randn(2, 3, 16, 16),)), 64)
    torch.testing.assert_close(x.mean((0, 2, 3)), MEAN, rtol=0, atol=15)


def test_more_steps_match_better() -> None:
    model = trained()
    gm = capture(model, (torch.randn(2, 3, 16, 16),))
    few, many = (mismatch(model, synthesised(gm, 32, steps=steps)[0]) for steps in (0, 30))
    assert many < few / 2


def test_the_same_seed_gives_the_same_inputs_and_leaves_everything_else_alone() -> None:
    model = trained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gm = capture(model, (torch.randn(2, 3, 16, 16),))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = synthesised(gm, 12, steps=2, seed=3)[0]
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():  # the caller's mode makes no difference
        assert torch.equal(first, synthesised(gm, 12, steps=2, seed=3)[0])
    assert not torch.equal(first, synthesised(gm, 12, steps=2, seed=4)[0])
    assert not first.requires_grad
    assert all(parameter.grad is None for parameter in (*model.parameters(), *gm.parameters()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gets_calibration_data_that_fits(name: str) -> None:
    gm = capture(build(name), (images(),))
    made = synthesised(gm, 5, steps=1)
    assert calibration_for(gm, [made]).count == 5
    assert made[0].isfinite().all()


def test_batches_are_equally_large_and_progress_counts_their_steps() -> None:
    told: list[tuple[int, int]] = []
    gm = capture(trained(), (torch.randn(2, 3, 16, 16),))
    (x,) = synthesised(gm, 9, steps=2, batch_size=8, progress=lambda done, total: told.append((done, total)))
    assert len(x) == 9
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_without_batch_norm_the_example_says_what_inputs_are_like() -> None:
    example = seen(64)[:, :, :8, :8]
    gm = capture(Plain(), (example,))
    (x,) = synthesised(gm, 1000)
    given, made = example.movedim(1, 0).flatten(1), x.movedim(1, 0).flatten(1)
    # the mean of 1000 images, half of whose variance is between images, is known to about one
    torch.testing.assert_close(made.mean(1), given.mean(1), rtol=0, atol=5)
    torch.testing.assert_close(made.std(1), given.std(1), rtol=0.1, atol=0)
    steps = (x[..., 1:] - x[..., :-1]).square().mean() / (2 * made.var(1).mean())
    assert steps < 0.5  # neighbours are alike: 1 for white noise


class Words(nn.Module):
    """Ids through two embeddings, a number beside them, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.tags, self.norm = nn.Embedding(11, 6), nn.Embedding(7, 6), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor, number: Tensor, mask: Tensor) -> Tensor:
        ids = ids.flatten(1)
        x = (self.words(ids) + self.tags(ids)) * mask.unsqueeze(-1)
        return self.head(self.norm(x.mean(1) + number))


def test_ids_are_in_the_range_of_every_embedding_and_masks_are_those_of_the_example() -> None:
    ids, mask = torch.zeros(2, 2, 3, dtype=torch.long), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    gm = capture(Words().eval(), (ids, torch.zeros(2, 6), mask))
    made = synthesised(gm, 40, steps=2)
    assert sorted(set(made[0].flatten().tolist())) == list(range(7))
    assert made[0].shape == (40, 2, 3)
    assert torch.equal(made[2], mask.repeat(20, 1))
    assert calibration_for(gm, [made]).count == 40


def test_ids_alone_leave_nothing_to_optimise() -> None:
    model = nn.Sequential(nn.Embedding(4, 6), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2)).eval()
    (ids,) = synthesised(capture(model, (torch.zeros(2, 2, dtype=torch.long),)), 6)
    assert ids.dtype == torch.long
    assert ids.max() < 4


class Tokens(nn.Module):
    """A network whose first op is an embedding of ids moved by `move`, or of all ids below `modulo`."""

    def __init__(self, move: int = 0, modulo: int = 100) -> None:
        super().__init__()
        self.move, self.modulo = move, modulo
        self.words, self.inner, self.head = nn.Embedding(11, 6), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        ids = ids if self.move == 0 else (ids + self.move) % self.modulo
        return self.head(F.relu(self.inner(self.words(ids).mean(1))))


class Scaled(nn.Module):
    """A network with a number beside its images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, scale: Tensor | float) -> Tensor:
        return self.head(F.relu(self.inner(x))) * scale


HALF = fp.Budget(params=0.6)
IDS = torch.tensor([[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("model", [Tokens(), Tokens(move=1, modulo=11)], ids=["as they are", "within the rows"])
def test_a_network_of_ids_is_pruned_without_data(model: nn.Module) -> None:
    result = fp.prune(model.eval(), IDS, budget=HALF, recipe="datafree")
    assert result.report.after["params"] < 0.6 * result.report.before["params"]
    assert result.report.stages[-1].after <= result.report.stages[0].before


def test_ids_that_have_no_row_are_refused_and_real_ones_wanted() -> None:
    model = Tokens(move=1).eval()
    with pytest.raises(CalibrationError, match=r"ids for input `ids` .* below 11 .* `embedding` .* as calibration="):
        fp.prune(model, IDS, budget=HALF, recipe="datafree")
    for recipe, data in (("magnitude", None), ("fast", torch.randint(10, (40, 3)))):
        result = fp.prune(model, IDS, budget=HALF, calibration=data, recipe=recipe)
        assert result.report.after["params"] < 0.6 * result.report.before["params"]


@pytest.mark.parametrize(
    ("scale", "kind"),
    [(torch.tensor(2.0), "a single number"), (torch.tensor(2), "a single number"), (2, "of type int")],
)
def test_an_input_without_samples_is_refused_by_name(scale: Tensor | int, kind: str) -> None:
    given = (torch.randn(2, 4), scale)
    message = f"input `scale` is {kind}, not a tensor of samples: .* the recipe 'magnitude'"
    with pytest.raises(CalibrationError, match=message):
        fp.prune(Scaled(), given, budget=HALF, recipe="datafree")
    with pytest.raises(CalibrationError, match=message):
        fp.prune(Scaled(), given, budget=HALF, recipe="fast", calibration=[given])
    result = fp.prune(Scaled(), given, budget=HALF, recipe="magnitude")
    assert result.report.after["params"] < 0.6 * result.report.before["params"]


class Baked(Trained):
    """A batch that the forward names."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(4, 3, 16, 16))


def test_a_batch_that_the_graph_is_fixed_to_is_respected() -> None:
    (x,) = synthesised(capture(Baked().eval(), (torch.randn(4, 3, 16, 16),)), 6, steps=1)
    assert len(x) == 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_matched_as_well(dtype: torch.dtype) -> None:
    model = trained().to(dtype)
    gm = capture(model, (torch.randn(2, 3, 16, 16, dtype=dtype),))
    (x,) = synthesised(gm, 32, steps=20)
    assert x.dtype == dtype
    assert mismatch(model.float(), x.float()) < 0.3


def _dead(model: nn.Module) -> None:
    model.get_buffer("norm1.running_var")[2] = 0
    model.get_buffer("norm2.running_var").zero_()


def _broken(model: nn.Module) -> None:
    model.get_buffer("norm2.running_mean")[0] = torch.nan


def _huge(model: nn.Module) -> None:
    model.get_buffer("norm1.running_var").fill_(torch.inf)


@pytest.mark.parametrize("spoil", [_dead, _broken, _huge])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_inputs_are_finite_whatever_the_statistics(spoil: Callable[[nn.Module], None], dtype: torch.dtype) -> None:
    model = Trained().eval().to(dtype)
    with torch.no_grad():
        spoil(model)
    (x,) = synthesised(capture(model, (torch.randn(2, 3, 16, 16, dtype=dtype),)), 8, steps=3)
    assert x.isfinite().all()
    assert x.std() > 0


def test_a_vector_of_many_features_is_matched_feature_by_feature() -> None:
    model = nn.Sequential(nn.BatchNorm1d(100), nn.Linear(100, 2)).eval()
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(torch.linspace(-2, 2, 100))
    norm.running_var.copy_(torch.linspace(0.1, 2, 100))
    (x,) = synthesised(capture(model, (torch.zeros(2, 100),)), 64)
    torch.testing.assert_close(x.mean(0), norm.running_mean, rtol=0, atol=0.1)
    torch.testing.assert_close(x.std(0), norm.running_var.sqrt(), rtol=0.1, atol=0)


def test_no_images_are_refused() -> None:
    gm = capture(Plain(), (images(),))
    with pytest.raises(CalibrationError, match="images must be at least 1, not 0"):
        synthesised(gm, 0)
