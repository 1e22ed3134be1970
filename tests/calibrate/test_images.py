"""Calibration data in every form, cut into batches; and one clear line for what cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils.data import DataLoader, TensorDataset

from fxprune.calibrate.images import Calibration, calibration_for
from fxprune.capture import capture
from fxprune.errors import CalibrationError
from tests.networks import build, images


@pytest.fixture
def gm() -> fx.GraphModule:
    return capture(build("Residual"), (images(),))


def rows(calibration: Calibration) -> Tensor:
    return torch.cat([batch[0] for batch in calibration.batches])


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda x: x,
    "list of tensors": lambda x: list(x.split(3)),
    "generator": lambda x: (part for part in x.split(4)),
    "labelled loader": lambda x: DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=4),
    "dicts": lambda x: [{"x": part, "label": 0} for part in x.split(5)],
    "lists": lambda x: [[part, 1] for part in x.split(5)],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_all_images(gm: fx.GraphModule, form: str) -> None:
    x = images(10)
    found = calibration_for(gm, FORMS[form](x), batch_size=4)
    assert found.count == 10 and [len(batch[0]) for batch in found.batches] == [4, 4, 1, 1]
    order = rows(found).flatten(1)[:, 0].argsort()
    torch.testing.assert_close(rows(found)[order], x[x.flatten(1)[:, 0].argsort()])


def test_the_last_batches_are_held_out_and_the_order_is_seeded(gm: fx.GraphModule) -> None:
    x = images(16)
    one, again, other = (calibration_for(gm, x, batch_size=2, held_out=0.25, seed=seed) for seed in (1, 1, 2))
    assert [one.is_held_out(index) for index in range(8)] == [False] * 6 + [True] * 2
    assert (one.fitting, one.judging, one.count_of(one.fitting)) == (range(6), range(6, 8), 12)
    assert torch.equal(rows(one), rows(again)) and not torch.equal(rows(one), rows(other))
    none = calibration_for(gm, x, held_out=0)
    assert (none.held_out, none.judging, none.fitting) == (0, none.fitting, range(len(none.batches)))


@pytest.mark.parametrize("count", [4, 5, 8, 12, 57, 65, 513, 577, 1000])
def test_an_eighth_of_the_images_is_held_out_whatever_their_number(gm: fx.GraphModule, count: int) -> None:
    found = calibration_for(gm, images(count))
    assert found.count == count and found.count_of(found.judging) == (round(count / 8) or count)
    assert sorted(map(str, rows(found))) == sorted(map(str, rows(calibration_for(gm, images(count), held_out=0))))


def test_whole_batches_are_held_out_where_the_graph_takes_no_others() -> None:
    fixed = capture(build("Residual"), (images(4),), dynamic_shapes={"x": None})
    for count, apart in ((4, 0), (8, 1), (16, 1), (64, 2)):
        found = calibration_for(fixed, images(count))
        assert found.fixed and set(found.sizes) == {4} and found.held_out == apart


@pytest.mark.parametrize("lazy", [True, False])
def test_finer_batches_hold_the_same_images_held_out_as_before(gm: fx.GraphModule, lazy: bool) -> None:
    whole = calibration_for(gm, images(50), batch_size=12, held_out=0.4)
    whole = whole if lazy else Calibration(list(whole.batches), whole.held_out)
    fine = whole.finer(5)
    assert [len(batch[0]) for batch in fine.batches] == fine.sizes == [5, 5, 2, 5, 5, 2, 5, 1, 5, 5, 2, 5, 3]
    assert torch.equal(rows(fine), rows(whole))
    assert (whole.sizes, whole.held_out, fine.held_out, fine.count) == ([12, 12, 6, 12, 8], 2, 5, 50)
    assert calibration_for(gm, images(10), held_out=0).finer(5).held_out == 0


class Counting(Tensor):
    """A tensor that counts the rows that are taken out of it."""

    taken = 0

    def __getitem__(self, rows: Any) -> Tensor:
        found = super().__getitem__(rows)
        Counting.taken += len(found)
        return found


def test_an_image_is_read_for_its_own_batch_alone(gm: fx.GraphModule) -> None:
    whole = calibration_for(gm, images(50).as_subclass(Counting), batch_size=12)
    Counting.taken = 0
    fine = whole.finer(5)
    assert (fine.count, Counting.taken) == (50, 0)
    assert len(fine.batches[1][0]) == Counting.taken == 5


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a) + self.right(b)


def test_several_inputs_come_as_tuples_or_by_name() -> None:
    gm = capture(Pair(), (torch.randn(2, 3), torch.randn(2, 2)))
    a, b = torch.randn(6, 3), torch.randn(6, 2)
    for data in ([(a, b)], [(a, b, torch.zeros(6))], [((a, b), torch.zeros(6))], [{"a": a, "b": b}]):
        assert [tuple(part.shape) for part in calibration_for(gm, data, held_out=0).batches[0]] == [(6, 3), (6, 2)]
    with pytest.raises(CalibrationError, match=r"lacks the inputs \['b'\]"):
        calibration_for(gm, [{"a": a}])
    with pytest.raises(CalibrationError, match="holds 1 inputs; the model takes 2"):
        calibration_for(gm, a)
    with pytest.raises(CalibrationError, match="differ in batch size"):
        calibration_for(gm, [(a, b[:3])])


def test_images_that_differ_are_counted() -> None:
    gm = capture(build("Plain"), (images(),))
    x = images(6)
    assert calibration_for(gm, torch.cat([x, x])).distinct == 6
    few = calibration_for(gm, x[:1].expand(40, -1, -1, -1))
    assert few.distinct == 1 and not few.teaches
    assert calibration_for(gm, x).teaches


BAD: dict[str, tuple[Any, str]] = {
    "empty list": ([], "no images"),
    "empty tensor": (torch.zeros(0, 3, 8, 8), "no images"),
    "nan": (torch.full((2, 3, 8, 8), torch.nan), "input `x` holds NaN or infinity"),
    "infinity": (torch.full((2, 3, 8, 8), torch.inf), "input `x` holds NaN or infinity"),
    "channels": (torch.zeros(2, 1, 8, 8), r"shape \(2, 1, 8, 8\) does not fit the model's \('\*', 3, 8, 8\)"),
    "rank": (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\) does not fit"),
    "scalar": (torch.tensor(1.0), r"shape \(\) does not fit"),
    "dtype": (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "dtype torch.uint8 is not the model's torch.float32"),
    "text": (["an image"], "expected a tensor, found str"),
    "arrays": (np.zeros((2, 3, 8, 8), np.float32), "found ndarray: torch.from_numpy makes one of it"),
    "samples": (list(torch.zeros(2, 3, 8, 8)), "does not fit .*: single samples want a batch, as .*DataLoader makes"),
    "number": (7, "must be a tensor or an iterable of batches, not int"),
    "one dict": ({"x": torch.zeros(2, 3, 8, 8)}, "must be a tensor or an iterable of batches, not dict"),
    "empty tuple": ([()], "is an empty tuple"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_said_in_one_line(gm: fx.GraphModule, name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(CalibrationError, match=message) as raised:
        calibration_for(gm, data)
    assert "\n" not in str(raised.value)


def test_a_fixed_batch_size_is_kept() -> None:
    gm = capture(build("Residual"), (images(4),), dynamic_shapes={"x": None})
    assert [len(batch[0]) for batch in calibration_for(gm, images(10)).batches] == [4, 4]
    with pytest.raises(CalibrationError, match="bakes a batch of 4 in, but calibration holds 3 images"):
        calibration_for(gm, images(3))
    fixed = calibration_for(gm, images(10))
    assert fixed.finer(3) is fixed


def test_the_first_batches_are_as_many_as_hold_so_many_images() -> None:
    calibration = Calibration([(images(3),), (images(2),), (images(4),), (images(1),)], held_out=1)
    firsts = [list(calibration.first(calibration.fitting, count)) for count in (0, 1, 3, 4, 5, 6, float("inf"))]
    assert firsts == [[], [0], [0], [0, 1], [0, 1], [0, 1, 2], [0, 1, 2]]
    assert list(calibration.first(calibration.judging, 1)) == [3]


def test_samples_of_one_size_are_asked_for() -> None:
    sizes = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    gm = capture(build("Residual"), (images(),), dynamic_shapes=(sizes,))
    message = r"calibration batch 1, input `x`: samples of shape \(3, 12, 12\), those before \(3, 8, 8\): bring all"
    with pytest.raises(CalibrationError, match=message):
        calibration_for(gm, [torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 12, 12)])


def test_no_held_out_image_has_a_copy_among_the_others() -> None:
    gm = capture(build("Plain"), (images(),))
    x = images(10)
    calibration = calibration_for(gm, torch.cat([x, x, x, x]), batch_size=4)
    fitting, judging = (
        torch.cat([batch for (batch,) in calibration.batches_of(part)]).flatten(1).unique(dim=0)
        for part in (calibration.fitting, calibration.judging)
    )
    assert len(fitting) + len(judging) == 10 and len(judging) == 1
    assert not (fitting[:, None] == judging).all(2).any()
    assert calibration.distinct == 10 and calibration.count == 40


def test_samples_of_the_same_sums_are_no_copies() -> None:
    words = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    orders = torch.stack([torch.randperm(10, generator=torch.Generator().manual_seed(seed)) for seed in range(40)])
    assert calibration_for(capture(words, (orders[:2],)), orders).distinct == 40


def test_copies_of_one_image_do_not_drive_the_others_out_of_the_fit(gm: fx.GraphModule) -> None:
    x = images(41)
    calibration = calibration_for(gm, torch.cat([x[:1].expand(400, -1, -1, -1), x[1:]]))
    fitting, judging = (
        torch.cat([batch for (batch,) in calibration.batches_of(part)]).flatten(1).unique(dim=0)
        for part in (calibration.fitting, calibration.judging)
    )
    assert (len(fitting), len(judging)) == (36, 5)


class Steps(nn.Module):
    """Reads sequences with the time first."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.GRU(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.cells(x)[0][-1])
        return y


def test_sequences_with_the_time_first_stay_in_one_piece() -> None:
    x = [torch.randn(5, 8, 3) for _ in range(6)]
    found = calibration_for(capture(Steps(), (x[0],), dynamic_shapes=({1: Dim.AUTO},)), x)
    assert len(found.batches) == 6 and found.held_out == 1
    assert all(any(torch.equal(batch, one) for one in x) for (batch,) in found.batches)


def test_an_input_has_the_name_that_the_forward_gives_it() -> None:
    gm = capture(nn.Sequential(nn.Linear(3, 2)), (torch.randn(2, 3),))
    (node,) = (node for node in gm.graph.nodes if node.op == "placeholder")
    assert str(node.target) == "input" != node.name
    for name in ("input", node.name):
        assert calibration_for(gm, [{name: torch.randn(6, 3)}]).count == 6


class Batched(nn.Module):
    """Takes a batch as a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        y: Tensor = self.left(batch["a"]) + self.right(batch["more"][0])
        return y


def test_a_dict_that_the_forward_takes_whole() -> None:
    gm = capture(Batched(), ({"a": torch.randn(2, 3), "more": [torch.randn(2, 2)]},))
    a, b = torch.randn(6, 3), torch.randn(6, 2)
    item = {"label": torch.zeros(6), "more": [b], "a": a}
    for data in ([item], [(item,)], [(item, torch.zeros(6))]):
        (batch,) = calibration_for(gm, data, held_out=0).batches
        order = batch[0][:, 0].argsort()
        assert torch.equal(batch[0][order], a[a[:, 0].argsort()]) and torch.equal(batch[1][order], b[a[:, 0].argsort()])
    assert calibration_for(gm, [(a, b)]).count == 6
    with pytest.raises(CalibrationError, match=r"batch 0 lacks the inputs \['more'\]; it has \['a'\]"):
        calibration_for(gm, [{"a": a}])
    with pytest.raises(CalibrationError, match="holds 3 inputs; the model takes 2"):
        calibration_for(gm, [{"a": a, "more": [b, b]}])
