"""The example run: attributes that the forward sets, results of classes of one's own, fused attention, subgraphs."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture import capture
from fxprune.errors import CaptureError


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)


class Counting(Layer):
    """Its result depends on how often it was called."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * self.calls


class Remembering(Layer):
    """It keeps what it has seen, and reads none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.known: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.linear(x)
        self.seen.append(x)
        self.known["x"] = x
        return self.last


class Caching(Layer):
    """In evaluation it keeps what it has computed from its parameters, as timm's LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Caching:
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if "weight" not in self.cache:
            self.cache["weight"] = self.linear.weight * 2
        return x @ self.cache["weight"]


def test_a_result_that_depends_on_an_attribute_is_refused() -> None:
    model = Counting().eval()
    with pytest.raises(CaptureError, match=r"changes self.calls, and its result depends .*register_buffer"):
        capture(model, torch.randn(2, 4))
    assert model.calls == 0


def test_attributes_that_nobody_reads_are_left_as_they_were() -> None:
    model, x = Remembering().eval(), torch.randn(2, 4)
    torch.testing.assert_close(capture(model, x)(x), model.linear(x))
    assert not model.seen and not model.known and not hasattr(model, "last")


def test_what_is_cached_in_evaluation_is_computed_in_the_graph() -> None:
    model, x = Caching().eval(), torch.randn(2, 4)
    wanted = model(x)
    gm = capture(model, x)
    assert {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"} == {"linear.weight"}
    torch.testing.assert_close(gm(x), wanted)
    assert not model.training


@dataclass
class Output:
    logits: Tensor
    hidden: list[Tensor]
    loss: Tensor | None = None


class Pair(NamedTuple):
    first: Tensor
    second: dict[str, Tensor]


Plain = namedtuple("Plain", ["a"])


class Opaque:
    pass


class Returning(Layer):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        results: dict[str, Any] = {
            "dataclass": Output(y, [x + 1]),
            "nested": {"deep": (Output(y, []), Pair(x * 2, {"y": y}))},
            "namedtuple": Plain(y),
            "opaque": Opaque(),
        }
        return results[self.kind]


@pytest.mark.parametrize("kind", ["dataclass", "nested", "namedtuple"])
def test_results_of_classes_of_ones_own(kind: str) -> None:
    model, x = Returning(kind), torch.randn(2, 4)
    found, wanted = capture(model, x)(x), model(x)
    if kind == "nested":
        (found, pair), (wanted, other) = found["deep"], wanted["deep"]
        assert type(pair) is Pair and torch.equal(pair.second["y"], other.second["y"])
    assert type(found) is type(wanted)
    if isinstance(wanted, Output):
        assert torch.equal(found.logits, wanted.logits) and found.loss is None
        assert [torch.equal(*items) for items in zip(found.hidden, wanted.hidden, strict=True)] == [
            True for _ in wanted.hidden
        ]


def test_a_class_that_holds_nobody_knows_what_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"returns a .*Opaque, a class that torch.export cannot take apart: return"):
        capture(Returning("opaque"), torch.randn(2, 4))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_captured_in_its_plain_form(masked: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2), torch.randn(3, 5, 8)
    mask = {"src_key_padding_mask": torch.arange(5).expand(3, 5) > 3} if masked else {}
    assert torch.backends.mha.get_fastpath_enabled()
    gm = capture(model, (x,), mask)
    assert torch.backends.mha.get_fastpath_enabled()
    names = {str(node.target) for node in gm.graph.nodes if node.op == "call_function"}
    assert not any("multi_head" in name or "encoder" in name or "nested" in name for name in names)
    torch.testing.assert_close(gm(x, **mask), _dense(model, x, mask))


def _dense(model: nn.Module, x: Tensor, mask: dict[str, Tensor]) -> Tensor:
    """What the model gives without its fused path, which zeroes the places that a mask leaves out."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        result: Tensor = model.eval()(x, **mask)
        return result
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


class Contexts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            y = self.first(x)
            with torch.enable_grad():
                z = torch.relu(y)
        return self.last(z), y


def test_contexts_that_change_nothing_become_part_of_the_graph() -> None:
    model, x = Contexts(), torch.randn(2, 4)
    gm = capture(model, x)
    assert {node.op for node in gm.graph.nodes} == {"placeholder", "get_attr", "call_function", "output"}
    torch.testing.assert_close(gm(x), model(x))


def test_names_that_a_graph_module_has_itself_are_refused() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.code(x)

    with pytest.raises(CaptureError, match=r"`self.code` has a name that a GraphModule needs for itself: rename it"):
        capture(Named(), torch.randn(2, 4))
