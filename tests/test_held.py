"""What may not shrink, by cause and place."""

from __future__ import annotations

import torch
from torch import nn

import fxprune as fp
from fxprune.errors import describe
from fxprune.held import by_cause

CONV = (
    "`conv2d` (aten.conv2d.default) of shape (s77, 8, 4, 4) at /lib/python3.11/site-packages/zoo/net.py:7: x = conv(x)"
)


def test_axes_are_grouped_by_cause_and_place() -> None:
    held = {
        "conv.weight[2]": f"kernel extent of {CONV}",
        "conv.weight[3]": f"kernel extent of {CONV}",
        "own.weight[2]": "kernel extent of `conv2d_1` (aten.conv2d.default)",
        "fc.bias[0]": "an output of the network",
    }
    found = {
        cause: {place: [one.axis for one in axes] for place, axes in places.items()}
        for cause, places in by_cause(held).items()
    }
    assert found == {
        "kernel extent": {
            "aten.conv2d.default at zoo/net.py:7: x = conv(x)": ["conv.weight[2]", "conv.weight[3]"],
            "aten.conv2d.default": ["own.weight[2]"],
        },
        "an output of the network": {"": ["fc.bias[0]"]},
    }


def test_reasons_of_a_real_network_name_their_node() -> None:
    gm = fp.capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), torch.randn(2, 3, 8, 8))
    held = {str(axis): reason for axis, reason in fp.analyze(gm).held.items()}
    conv = next(node for node in gm.graph.nodes if node.name == "conv2d")
    assert any(describe(conv) in reason for reason in held.values())
    causes = by_cause(held)
    assert {"kernel extent", "an output of the network"} <= set(causes)
    assert all("`" not in cause for cause in causes)
