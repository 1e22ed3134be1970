"""Writes in place: every kind becomes plain calls with the same results, inputs and buffers, or is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from fxprune.capture import capture
from fxprune.errors import CaptureError
from fxprune.passes.base import clone, refresh_metadata
from fxprune.passes.lift import Lift
from fxprune.passes.tidy import Tidy


class Writes(nn.Module):
    """A layer, something written into its result, and a layer on that."""

    def __init__(self, write: Callable[[Writes, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.write = nn.Linear(4, 4), nn.Linear(4, 2), write
        self.register_buffer("total", torch.zeros(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.write(self, x, self.first(x)))


def whole(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    z = y.relu_()
    y += 1
    return y * z


def through_slices(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    y[:, :2] = 0
    y[:, 2:].mul_(2)
    y[:, 1] += x[:, 0]
    return y


def through_transposes(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    y.t().add_(x.t())
    y.permute(1, 0)[0].neg_()
    return y


def through_reshapes(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    y.view(-1, 2, 2)[:, 0].sigmoid_()
    y.unsqueeze(0).squeeze(0).unflatten(1, (2, 2)).flatten(1)[:, 3].zero_()
    return y


def through_parts(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    left, right = y.chunk(2, 1)
    left.mul_(torch.sigmoid(right))
    first, *_ = y.unbind(1)
    first.fill_(3.0)
    y.split([1, 3], 1)[1].add_(1)
    return torch.cat([right, left], 1)


def through_a_view_taken_before(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    before = y[:, 1:]
    y.mul_(3)
    return torch.cat([before, y[:, :1]], 1)


def with_masks_and_indices(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    y[y < 0] = 0.5
    y[:, torch.tensor([0, 2])] += 1
    y.index_fill_(1, torch.tensor([1]), 3.0)
    return y.masked_fill_(x > 1, -1.0).clamp_(max=2)


def into_a_fresh_tensor(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    z = torch.zeros(x.shape[0], 4)
    z[:, :2] = y[:, 2:]
    z[:, 2:].copy_(x[:, :2])
    return z


def of_another_type(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    z = y.half()
    z += x
    return z.float()


def into_what_is_no_view(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    y.t().reshape(-1).zero_()  # a copy: y stays as it is
    y.double().fill_(7)
    return y


def of_the_shape(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    z = y[:, :3]
    z.unsqueeze_(0).squeeze_(0)
    z.t_()
    return y + z.sum(0)[:, None]


def into_buffers(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    net.get_buffer("calls").add_(1)
    net.total = 0.9 * net.get_buffer("total") + x.mean(0)
    net.get_buffer("total")[1:3] = x[0, :2]
    return y + net.get_buffer("total") * net.get_buffer("calls")


def into_the_input(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    x.mul_(2)
    return y + x


WRITES = [
    *(whole, through_slices, through_transposes, through_reshapes, through_parts, through_a_view_taken_before),
    *(with_masks_and_indices, into_a_fresh_tensor, of_another_type, into_what_is_no_view, of_the_shape),
    *(into_buffers, into_the_input),
]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@torch.no_grad()
def test_results_inputs_and_buffers_are_those_of_the_original(write: Callable[..., Tensor]) -> None:
    model, x = Writes(write).eval(), torch.randn(3, 4)
    start = copy.deepcopy(model.state_dict())
    gm = capture(model, x)
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
    lifted, model = clone(gm), copy.deepcopy(model)  # the graph shares its buffers with the original
    for step in (Tidy(), Lift(), Tidy()):
        step(lifted)
    assert "torch.ops" not in lifted.code
    for network in (gm, lifted):
        network.load_state_dict(start)
        model.load_state_dict(start)
        for batch in (3, 5):
            given, taken = torch.randn(batch, 4), torch.empty(batch, 4)
            taken.copy_(given)
            torch.testing.assert_close(network(taken), model(given))
            assert torch.equal(taken, given)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, model.state_dict()[name])


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_nothing_is_written_but_at_the_end(write: Callable[..., Tensor]) -> None:
    gm = capture(Writes(write), torch.randn(3, 4))
    calls = [node for node in gm.graph.nodes if node.op == "call_function"]
    written = [node for node in calls if _is_mutable(node)]
    assert all(node.target is torch.ops.aten.copy_.default for node in written)
    assert written == calls[len(calls) - len(written) :]
    assert bool(written) == (write in {into_buffers, into_the_input})
    values = {node.name: str(node.meta["val"].shape) for node in calls if isinstance(node.meta["val"], Tensor)}
    refresh_metadata(gm)
    assert values == {node.name: str(node.meta["val"].shape) for node in calls if node.name in values}


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def into_a_parameter(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        net.first.weight[0].mul_(0.99)
    return y


def through_a_window(net: Writes, x: Tensor, y: Tensor) -> Tensor:
    y.unfold(1, 2, 2).add_(1)
    return y


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            into_a_parameter,
            r"writes into the parameter `first.weight` in `mul_` \(aten.mul_.Tensor\).*change parameters",
        ),
        (through_a_window, r"writes through `unfold` \(aten.unfold.default\).*which has no inverse: write into the"),
    ],
)
def test_what_a_graph_cannot_say_is_refused(write: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        capture(Writes(write), torch.randn(3, 4))
    assert "test_functional.py" in str(caught.value)  # the line is named
