"""Lift on forwards of every shape: structures, functions, names, modules called twice, and writes in place."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_manager import PassManager

import fxprune as fp
from fxprune.capture import capture
from fxprune.passes.lift import Lift
from fxprune.passes.tidy import Tidy
from tests.networks import build, images, randomized


def lifted(model: nn.Module, *inputs: Any, **kwargs: Any) -> fx.GraphModule:
    """A lifted graph of its own: the capture is copied first."""
    gm = copy.deepcopy(capture(model, inputs, kwargs))
    Lift()(gm)
    return gm


class Structured(nn.Module):
    """Nested inputs, a keyword, and a dict of results; a weight that no module of torch.nn owns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(5, 3, 3, 3)), nn.Parameter(torch.rand(5))
        self.register_buffer("shift", torch.randn(5), persistent=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor, pair: tuple[Tensor, dict[str, Tensor]], *, mask: Tensor) -> dict[str, Any]:
        y = F.conv2d(x, self.weight, stride=2, padding=1) * self.scale[:, None, None]
        y = y + self.get_buffer("shift")[:, None, None] + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None, None]
        return {"y": y.mean((2, 3)), "rest": (pair[0] - pair[1]["b"], [mask])}


def test_structures_keywords_and_functional_weights() -> None:
    model = Structured()
    x, a, b, mask = images(), torch.randn(2, 4), torch.randn(2, 4), torch.rand(2)
    gm = lifted(model, x, (a, {"b": b}), mask=mask)
    wanted, found = model(x, (a, {"b": b}), mask=mask), gm(x, (a, {"b": b}), mask=mask)
    assert gm.code.startswith("\ndef forward(self, x: Tensor, pair, mask: Tensor):")
    assert "F.conv2d(x, self.weight, stride=2, padding=1)" in gm.code
    torch.testing.assert_close(found, wanted)
    assert isinstance(found["rest"], tuple)
    assert isinstance(found["rest"][1], list)
    assert list(gm.state_dict()) == list(model.state_dict()) == list(copy.deepcopy(gm).state_dict())
    assert {name for name, _ in gm.named_buffers()} > {"shift"}
    torch.testing.assert_close(copy.deepcopy(gm)(x, (a, {"b": b}), mask=mask), wanted)


class Twice(nn.Module):
    """One module called twice, alike; and one weight used in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.odd = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(self.act(self.conv(x))))
        return self.odd(x)[:, :, ::2, ::2] + F.conv2d(x, self.odd.weight, self.odd.bias, stride=2)


def test_a_module_called_twice_is_one_and_a_weight_used_in_two_ways_is_none() -> None:
    model, x = randomized(Twice()), images()
    gm = lifted(model, x)
    assert gm.code.count("self.conv(x)") == gm.code.count("self.act(") == 2
    assert "self.odd(" not in gm.code
    assert "F.conv2d(x, self.odd.weight, self.odd.bias, stride=2)" in gm.code
    assert gm.get_submodule("act").inplace
    torch.testing.assert_close(gm(x), model(x))


class Activated(nn.BatchNorm2d):
    """A normalisation that holds its activation."""

    def __init__(self) -> None:
        super().__init__(3)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def test_what_a_lifted_module_held_becomes_a_function() -> None:
    model = randomized(nn.Sequential(Activated()))
    gm = lifted(model.eval(), images())
    assert type(gm.get_submodule("0")) is nn.BatchNorm2d
    assert "input = F.relu(input)" in gm.code
    torch.testing.assert_close(gm(images()), model(images()))


def test_numbers_as_names_become_lists_and_dicts() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Sequential(nn.Identity(), nn.Conv2d(4, 2, 1))
    )
    gm = lifted(model, images())
    assert isinstance(gm.get_submodule("0"), nn.ModuleList)
    assert isinstance(gm.get_submodule("1"), nn.ModuleDict)
    assert 'getattr(self, "1")["1"](input)' in gm.code
    torch.testing.assert_close(gm(images()), model(images()))


def test_a_graph_of_symbolic_trace_comes_back_with_its_modules() -> None:
    model = build("Residual")
    gm = lifted(fx.symbolic_trace(model), images())
    assert "self.conv1[0](x)" in gm.code
    torch.testing.assert_close(gm(images()), model(images()))


class Functions(nn.Module):
    """Calls of many kinds, none of a module."""

    def forward(self, x: Tensor) -> Tensor:
        y = 1 - x.clamp(-1, 1).softmax(1) ** 2
        y = torch.where(y > 0.3, y, x.abs().sqrt()) @ x.transpose(1, 2)
        y = torch.stack([y, -y], 1).flatten(1, 2).unsqueeze(-1).expand(-1, -1, -1, 2).sum(-1, keepdim=True).squeeze(-1)
        first, _, last = y.split([1, 2, y.shape[1] - 3], 1)
        y = torch.einsum("bij,bkj->bik", last, first) + F.normalize(first.std(2, keepdim=True)).sum()
        y = y.masked_fill(y.isnan(), 0.0).roll(1, 1).to(torch.float64)[:, [0, 2]]
        return torch.sigmoid(y[:, 0] / 3 + y[:, -1]).reshape(x.shape[0], -1).repeat(1, 2).amax(1)


def test_functions_operators_and_methods() -> None:
    model, x = Functions(), torch.randn(2, 4, 5)
    gm = copy.deepcopy(capture(model, x))
    Tidy()(gm)
    Lift()(gm)
    assert "torch.ops" not in gm.code, gm.code
    assert "1 - " in gm.code
    torch.testing.assert_close(gm(x), model(x))
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(gm(x), model(x))


class Overwriting(nn.Module):
    """An in-place activation whose input is read again, and one on a view."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.conv = nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = x.clone()
        y = self.act(y) + y
        return y + x


def test_in_place_modules_overwrite_only_what_nobody_reads() -> None:
    model, x = Overwriting(), images()
    gm = copy.deepcopy(capture(model, x))
    Tidy()(gm)
    Lift()(gm)
    wanted = model(x.clone())
    torch.testing.assert_close(gm(x), wanted)
    torch.testing.assert_close(gm(x), wanted)


class Masked(nn.Module):
    """Writes into views of a tensor that it makes, as Swin does for its attention mask."""

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros((4, 4))
        for number, rows in enumerate((slice(0, 1), slice(1, 3))):
            mask[rows, rows] = number + 1
        return x + mask


def test_writes_into_views_are_kept_by_both_passes() -> None:
    model, x = Masked(), torch.randn(2, 4, 4)
    gm = lifted(model, x)
    Tidy()(gm)
    torch.testing.assert_close(gm(x), model(x))


def test_a_lifted_module_is_pickled_traced_and_captured_like_any_other() -> None:
    x = images()
    gm = lifted(build("Shuffle"), x)
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    again = [torch.load(file, weights_only=False), fx.symbolic_trace(gm), capture(gm, x), lifted(gm, x)]
    for module in again:
        assert torch.equal(module(x), gm(x))
        assert list(module.state_dict()) == list(gm.state_dict())
    assert again[-1].code == gm.code


def test_a_result_is_pickled_without_what_the_passes_handed_on() -> None:
    x, file = images(), io.BytesIO()
    model = fp.prune(build("Residual"), x, budget=fp.Budget(params=0.6), recipe="magnitude").model
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(x), model(x)) and not again.meta.get("fxprune")
    assert copy.deepcopy(model).meta["fxprune"].keys() == model.meta["fxprune"].keys() > {"plan", "dense"}


def test_it_works_in_a_pass_manager() -> None:
    gm = copy.deepcopy(capture(build("Residual"), images()))
    manager = PassManager(passes=[Tidy(), Lift(), Tidy()], run_checks_after_each_pass=True)
    result = manager(gm)
    assert result.modified
    assert result.graph_module is gm
    assert not manager(gm).modified
