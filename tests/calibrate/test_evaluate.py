"""Evaluation on demand: the values of the graph, from wherever one starts."""

from __future__ import annotations

import pytest
import torch

from fxprune.calibrate.cuts import cut_points
from fxprune.calibrate.evaluate import Evaluator, outputs_of
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


def test_cut_points_are_where_everything_flows_through() -> None:
    gm = capture(build("Residual"), (images(),))
    assert cut_points(gm) == ("conv2d", "batch_norm", "relu", "add", "relu_2", "mean", "linear")
    dense = cut_points(capture(build("Dense"), (images(),)))
    assert "cat" in dense and "cat_1" in dense and "relu" not in dense
