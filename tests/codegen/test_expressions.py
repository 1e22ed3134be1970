"""Values and attributes as Python text."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from fxprune.codegen.expressions import Expressions, attribute
from fxprune.errors import RewriteError

VALUES = {
    "(1,)": (1,),
    "[1, (2, 3)]": [1, (2, 3)],
    '{"a": None}': {"a": None},
    "torch.float32": torch.float32,
    "torch.channels_last": torch.channels_last,
    'torch.device("cpu")': torch.device("cpu"),
    'float("-inf")': float("-inf"),
    '"it\'s \\"so\\""': 'it\'s "so"',
}


@pytest.mark.parametrize("text", VALUES)
def test_constants(text: str) -> None:
    assert Expressions(None, {}).value(VALUES[text]) == text
    assert eval(text) == VALUES[text]


def test_attributes_execute() -> None:
    root = nn.Module()
    root.layers = nn.ModuleList([nn.Module()])
    root.layers[0].add_module("0", nn.ReLU())
    root.table = nn.ModuleDict({"2": nn.ReLU(), "lambda": nn.ReLU(), "plain": nn.ReLU()})
    expected = {
        "layers.0": "self.layers[0]",
        "layers.0.0": 'getattr(self.layers[0], "0")',
        "table.2": 'self.table["2"]',
        "table.lambda": 'self.table["lambda"]',
        "table.plain": "self.table.plain",
    }
    for path, text in expected.items():
        assert attribute(root, path) == text
        assert eval(text, {"self": root}) is root.get_submodule(path)


def test_what_torch_cannot_name_is_refused() -> None:
    graph = fx.Graph()
    with pytest.raises(RewriteError, match="cannot name"):
        Expressions(None, {}).call(graph.call_function(lambda: 1))
