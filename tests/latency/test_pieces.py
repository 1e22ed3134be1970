"""Pieces of a graph: what belongs together, that they compute the same, and how they are described."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.latency.pieces import calls_of, described, pieces_of, split, without_writes
from tests.networks import build, images


class Counting(nn.Module):
    """A network that counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.register_buffer("calls", torch.zeros(1))
        self.calls: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x).relu() * self.calls


def small() -> torch.fx.GraphModule:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    return fp.capture(network.eval(), torch.randn(2, 3, 8, 8))


def test_without_fusing_every_call_that_computes_is_a_piece_and_views_go_with_the_next() -> None:
    pieces = pieces_of(small(), fused=False)
    assert [[str(node.target) for node in piece.calls] for piece in pieces.values()] == [
        ["aten.conv2d.default"],
        ["aten.batch_norm.default"],
        ["aten.relu.default"],
        ["aten.flatten.using_ints", "aten.linear.default"],
    ]


def test_fused_is_what_lies_between_convolutions_and_matrix_products() -> None:
    pieces = pieces_of(small(), fused=True)
    assert [len(piece.calls) for piece in pieces.values()] == [1, 3, 1]
    middle = list(pieces.values())[1]
    assert [node.op for node in middle.inputs] == ["call_function", *["get_attr"] * 4]
    assert len(middle.outputs) == 1


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("network", ["Residual", "Shuffle"])
def test_the_pieces_compute_what_the_graph_does(network: str, fused: bool) -> None:
    gm = fp.capture(build(network), images())
    parts = split(gm, fused)
    assert {name for name, _ in parts.named_children()} >= set(pieces_of(gm, fused))
    found = parts(images())
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, gm(images()), rtol=0, atol=0)


def test_nothing_of_the_network_is_written() -> None:
    model = Counting().eval()
    gm = fp.capture(model, torch.randn(2, 3, 8, 8))
    before = dict(gm.named_buffers())["calls"].clone()
    bare = without_writes(gm)
    bare(torch.randn(2, 3, 8, 8))
    split(gm, False)(torch.randn(2, 3, 8, 8))
    assert torch.equal(dict(gm.named_buffers())["calls"], before)
    assert any("copy_" in str(node.target) for node in gm.graph.nodes)  # the graph itself is as it was


def test_a_piece_is_described_by_its_calls_and_shapes() -> None:
    parts = split(small(), fused=False)
    piece = next(module for name, module in parts.named_children() if name == "submod_conv2d")
    assert isinstance(piece, torch.fx.GraphModule)
    assert calls_of(piece) == "aten.conv2d.default(%0, %1, %2)"
    image = torch.empty(2, 3, 8, 8)
    assert described(image) == "float32[2, 3, 8, 8]"
    assert described(image.to(memory_format=torch.channels_last)) == "float32[2, 3, 8, 8] strides [192, 1, 24, 3]"
    assert described((image.half(), [image[0], 3])) == "(float16[2, 3, 8, 8], (float32[3, 8, 8], 3))"


class OwnStatistics(nn.Module):
    """A BatchNorm that goes on learning in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)


def test_statistics_that_are_learned_in_evaluation_stay() -> None:
    model = OwnStatistics().eval()
    gm = fp.capture(model, torch.randn(2, 3, 8, 8))
    before = {name: buffer.clone() for name, buffer in gm.named_buffers()}
    for graph in (without_writes(gm), split(gm, False)):
        graph(torch.randn(2, 3, 8, 8))
    assert all(torch.equal(before[name], buffer) for name, buffer in gm.named_buffers())
