"""Fuse: golden text, the same outputs, homes in biases and BatchNorms, and the refusal."""

from __future__ import annotations

import pytest
import torch

from fxprune.calibrate.homes import bias_home
from fxprune.capture import capture
from fxprune.errors import RewriteError
from fxprune.passes.base import CORRECTION, clone
from fxprune.passes.fuse import Fuse
from fxprune.passes.reconstruct import Reconstruct
from tests.networks import NETWORKS, build, calls, images, modified
from tests.passes.test_reconstruct import shrunk


@pytest.mark.parametrize("name", NETWORKS)
def test_the_text_is_that_of_before_the_correction_and_the_outputs_stay(name: str) -> None:
    _, small = shrunk(name)
    text, names = calls(small), list(small.state_dict())
    Reconstruct()(small)
    expected = small(images(4))
    Fuse()(small)
    assert calls(small) == text and list(small.state_dict()) == names
    torch.testing.assert_close(small(images(4)), expected, rtol=1e-4, atol=1e-5)
    assert not modified(Fuse()(small))


def test_homes_are_own_biases_and_norms_that_alone_read_the_layer() -> None:
    def homes(name: str) -> dict[str, str | None]:
        gm = capture(build(name), (images(),))
        found = [node for node in gm.graph.nodes if "conv2d" in node.name or "linear" in node.name]
        return {node.name: bias_home(node) for node in found}

    assert homes("Plain") == dict.fromkeys(["conv2d", "conv2d_1", "linear", "linear_1"], "bias")
    assert homes("Residual") == {**dict.fromkeys(["conv2d", "conv2d_1", "conv2d_2"], "batch_norm"), "linear": "bias"}


def test_a_correction_without_a_home_is_refused() -> None:
    gm = clone(capture(torch.nn.Linear(3, 2, bias=False), (torch.randn(2, 3),)))
    node = next(node for node in gm.graph.nodes if node.name == "linear")
    gm.register_buffer("constant", torch.ones(2))
    with gm.graph.inserting_after(node):
        constant = gm.graph.get_attr("constant")
    with gm.graph.inserting_after(constant):
        total = gm.graph.call_function(torch.ops.aten.add.Tensor, (node, constant))
    total.meta = {**node.meta, CORRECTION: True}
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
    with pytest.raises(RewriteError, match="no bias or BatchNorm takes up the correction of `linear`"):
        Fuse()(gm)
