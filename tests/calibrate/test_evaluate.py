"""Evaluation on demand: the values of the graph, from wherever one starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.calibrate.cuts import block_outputs, cut_points
from fxprune.calibrate.evaluate import Evaluator, judged_of, outputs_of
from fxprune.capture import capture
from tests.networks import NETWORKS, build, images


@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_the_graph_computes_from_any_cut(name: str) -> None:
    gm = capture(build(name), (images(),))
    x = images(3)
    expected = gm(x)
    evaluate = Evaluator(gm)
    (output,) = outputs_of(gm)
    everything = evaluate(evaluate.nodes.keys() - {"output"}, {"x": x})
    torch.testing.assert_close(everything[output], expected)
    for node in gm.graph.nodes:
        if node.op == "call_function":
            for inclusive in (True, False):
                alive = evaluate.alive_at(node.name, inclusive)
                given = {key: everything[key] for key in alive}
                if inclusive and node.name == output:
                    given[output] = everything[output]
                torch.testing.assert_close(evaluate([output], given)[output], expected)


def test_what_is_not_given_is_named() -> None:
    gm = capture(build("Plain"), (images(),))
    with pytest.raises(KeyError, match="placeholder `x`"):
        Evaluator(gm)(outputs_of(gm), {})


def test_offsets_are_added_to_the_value_of_their_node() -> None:
    gm = capture(build("Plain"), (images(),))
    (output,) = outputs_of(gm)
    shifted = Evaluator(gm, {output: torch.tensor([1.0, 2.0, 3.0])})
    difference = shifted([output], {"x": images()})[output] - gm(images())
    torch.testing.assert_close(difference, torch.tensor([[1.0, 2.0, 3.0]] * 2))


class Ending(nn.Module):
    """A layer and what is made of its result."""

    def __init__(self, finish: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.least, self.finish = nn.Linear(3, 4), nn.Parameter(torch.zeros(())), finish

    def forward(self, x: Tensor) -> Any:
        return self.finish(self.layer(x), self.least)


ENDINGS: dict[str, tuple[Callable[[Tensor, Tensor], Any], tuple[str, ...]]] = {
    "logits": (lambda y, least: y, ("linear",)),
    "answer": (lambda y, least: y.argmax(1), ("linear",)),
    "answer of a tuple": (lambda y, least: y.max(1)[1], ("linear",)),
    "answer and logits": (lambda y, least: (y.argmax(1), y), ("argmax", "linear")),
    "above a parameter": (lambda y, least: y > least, ("linear",)),
    "computed on": (lambda y, least: y.argmax(1) * 2 + 1, ("linear",)),
    "two values": (lambda y, least: (y.softmax(1).argmax(1), (y > 0).sum(1)), ("linear", "softmax")),
    "sizes alone": (lambda y, least: torch.zeros(y.shape[0], dtype=torch.long), ("zeros",)),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_network_is_judged_by_the_floating_point_values_nearest_to_its_end(name: str) -> None:
    finish, judged = ENDINGS[name]
    assert judged_of(capture(Ending(finish), torch.randn(2, 3))) == judged


def test_cut_points_are_where_everything_flows_through() -> None:
    gm = capture(build("Residual"), (images(),))
    assert cut_points(gm) == ("conv2d", "batch_norm", "relu", "add", "relu_2", "mean", "linear")
    dense = cut_points(capture(build("Dense"), (images(),)))
    assert "cat" in dense and "cat_1" in dense and "relu" not in dense


class Normalising(nn.Module):
    """A stem, two blocks that normalise before their layers or after the addition, and a head."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.stem, self.head, self.before = nn.Linear(4, 6), nn.Linear(6, 3), before
        self.layers, self.norms = (nn.ModuleList(make(6) for _ in range(2)) for make in (_square, nn.LayerNorm))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x)).relu() if self.before else norm(x + layer(x).relu())
        y: Tensor = self.head(x)
        return y


def _square(width: int) -> nn.Linear:
    return nn.Linear(width, width)


@pytest.mark.parametrize(
    ("before", "expected"),
    [(True, ["linear", "add", "add_1"]), (False, ["linear", "layer_norm", "layer_norm_1"])],
    ids=["before", "after"],
)
def test_blocks_put_out_what_is_behind_their_additions(before: bool, expected: list[str]) -> None:
    gm = capture(Normalising(before), torch.randn(2, 4))
    assert block_outputs(gm) == expected
    assert set(expected) < set(cut_points(gm))


class CuDNN(TorchDispatchMode):
    """Whether cuDNN is allowed, by the name of each operator that runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's has no types
        self.allowed: dict[str, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.allowed[func.overloadpacket.__name__] = torch.backends.cudnn.enabled
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wanted", [True, False])
def test_gradients_of_recurrent_layers_do_without_cudnn(wanted: bool) -> None:
    example = torch.randn(2, 7, 5)
    gm = capture(build("GRU"), (example,))
    with CuDNN() as seen, torch.set_grad_enabled(wanted):
        Evaluator(gm)(outputs_of(gm), {"x": example})
    inside = {"sigmoid", "sigmoid_"} & seen.allowed.keys()
    assert inside and all(seen.allowed[name] == (not wanted) for name in inside)
    assert seen.allowed["mean"] and torch.backends.cudnn.enabled
