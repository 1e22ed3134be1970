"""Lift of signatures: dataclasses and named tuples in and out, names of nodes, and devices."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from fxprune.capture import capture
from fxprune.codegen import module_source, save
from fxprune.passes.base import clone
from fxprune.passes.lift import Lift
from tests.networks import build, images


def lifted(model: nn.Module, *inputs: Any, **kwargs: Any) -> fx.GraphModule:
    gm = clone(capture(model, inputs, kwargs))
    Lift()(gm)
    return gm


def loaded(folder: Path) -> Any:
    """The module that model.py is, as an import makes it."""
    spec = importlib.util.spec_from_file_location("fxprune_saved_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    loss: Tensor | None = None
    scale: float = 1.5


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None = None


class Returning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.linear(x)
        return {"output": Output(y, (x, y + 1)), "pair": Pair(x)}


def test_dataclasses_and_named_tuples_come_back(tmp_path: Path) -> None:
    model, x = Returning(), torch.randn(3, 4)
    gm = lifted(model, x)
    found, wanted = gm(x), model(x)
    assert type(found["output"]) is Output and type(found["pair"]) is Pair
    assert torch.equal(found["output"].hidden[1], wanted["output"].hidden[1])
    assert "Output(logits=" in gm.code
    text = module_source(gm)
    assert "@dataclass\nclass Output:\n" in text and "class Pair(NamedTuple):\n" in text
    assert "    loss: Any = None\n    scale: Any = 1.5\n" in text
    where = save(gm, tmp_path / "out", {})
    network = loaded(where).Returning()
    network.load_state_dict(load_file(where / "model.safetensors"))
    result = network(x)
    assert type(result["output"]).__name__ == "Output" and result["pair"].second is None
    torch.testing.assert_close(result["output"].logits, wanted["output"].logits)


class Reading(nn.Module):
    def forward(self, given: Pair, *, options: dict[str, Tensor]) -> Tensor:
        assert given.second is not None
        return given.first * options["scale"] + given.second


def test_a_named_tuple_is_read_by_its_fields() -> None:
    pair, options = Pair(torch.randn(2, 3), torch.randn(2, 3)), {"scale": torch.rand(2, 3)}
    gm = lifted(Reading(), pair, options=options)
    assert "given.first" in gm.code and 'options["scale"]' in gm.code
    torch.testing.assert_close(gm(pair, options=options), Reading()(pair, options=options))


@pytest.mark.parametrize("name", ["Residual", "Dense", "Tied"])
def test_calls_are_named_as_symbolic_trace_names_them(name: str) -> None:
    traced = fx.symbolic_trace(build(name))
    gm = lifted(traced, images())
    calls = [[node.name for node in item.graph.nodes if node.op == "call_module"] for item in (traced, gm)]
    assert calls[0] == calls[1]
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == [
        node.target for node in gm.graph.nodes if node.op == "call_module"
    ]


class Making(nn.Module):
    """Makes tensors in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape[0], 4, device=x.device) + torch.arange(4, device=x.device)
        return F.relu(x) + y.to(x.device)


def test_what_is_made_goes_where_the_data_is() -> None:
    gm = lifted(Making(), torch.randn(3, 4))
    assert "cpu" not in gm.code
    assert gm.code.count("device=x.device") == 2
    assert gm(torch.randn(3, 4, device="meta")).device.type == "meta"


class Tables(nn.Module):
    """Tensors that are not in the state_dict, large and small."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.register_buffer("table", torch.rand(40, 5), persistent=False)
        self.register_buffer("shift", torch.rand(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.inner.get_buffer("table") + self.get_buffer("shift")


def test_large_constants_are_saved_beside_the_source(tmp_path: Path) -> None:
    model, x = Tables(), torch.randn(3, 40)
    where = save(lifted(model, x), tmp_path / "out", {})
    assert {path.name for path in where.iterdir()} == {"model.py", "model.safetensors", "constants.pt"}
    text = (where / "model.py").read_text()
    assert text.count('constants["inner.table"], persistent=False') == 1
    network = loaded(where).Tables()
    assert not network.state_dict()
    torch.testing.assert_close(network(x), model(x))
    save(lifted(build("Plain"), images()), where, {})  # an earlier result is replaced as a whole
    assert not (where / "constants.pt").exists()
