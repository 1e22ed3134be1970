"""Lift of nn.LSTM, nn.GRU and nn.RNN: modules of the shrunk sizes, with the states given or left at zero."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture import capture
from fxprune.codegen import module_source
from fxprune.coupling import analyze
from fxprune.passes.base import clone, refresh_metadata
from fxprune.passes.lift import Lift
from fxprune.passes.shrink import shrink
from tests.networks import random_plan


class Sequence(nn.Module):
    """A layer, a recurrent one, and a head on what it returns."""

    def __init__(self, kind: str, reads: str = "steps", **options: Any) -> None:
        super().__init__()
        both = 2 if options.get("bidirectional") else 1
        self.first, self.rnn = nn.Linear(4, 6), getattr(nn, kind)(6, 8, **options)
        width = options.get("proj_size", 8)
        self.head, self.reads = nn.Linear(width * (both if reads == "steps" else 1), 3), reads

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.reads == "steps":
            return self.head(self.rnn(y)[0])
        if self.reads == "given":
            state = y.new_zeros(1, y.shape[0], 8) + 0.5
            y, (h, c) = self.rnn(y, (state, state * 2))
            return self.head(y) + self.head(h[0] * c[0])[:, None]
        h = self.rnn(y)[1]
        return self.head(h[0][-1] if isinstance(h, tuple) else h[-1])


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lstm": ("LSTM", "steps", {"batch_first": True}),
    "two_ways": ("LSTM", "steps", {"batch_first": True, "bidirectional": True, "num_layers": 2, "dropout": 0.5}),
    "states": ("LSTM", "state", {"batch_first": True}),
    "given": ("LSTM", "given", {"batch_first": True}),
    "projected": ("LSTM", "steps", {"batch_first": True, "proj_size": 5}),
    "time_first": ("LSTM", "steps", {"bias": False}),
    "gru": ("GRU", "steps", {"batch_first": True, "num_layers": 2}),
    "gru_state": ("GRU", "state", {"batch_first": True}),
    "tanh": ("RNN", "steps", {"batch_first": True}),
    "relu": ("RNN", "state", {"batch_first": True, "nonlinearity": "relu"}),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_module_comes_back(case: str) -> None:
    kind, reads, options = CASES[case]
    model, x = Sequence(kind, reads, **options).eval(), torch.randn(3, 5, 4)
    gm = clone(capture(model, x))
    refresh_metadata(gm)
    Lift()(gm)
    assert "torch.ops" not in gm.code and "zeros" not in gm.code.replace("new_zeros", "")
    assert repr(gm.get_submodule("rnn")) == repr(model.rnn)
    assert list(gm.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(gm(x), model(x))
    torch.testing.assert_close(gm(torch.cat([x, x])), model(torch.cat([x, x])))


@pytest.mark.parametrize("case", ["lstm", "two_ways", "states", "gru", "relu"])
@torch.no_grad()
def test_a_shrunk_one_has_the_kept_sizes(case: str) -> None:
    kind, reads, options = CASES[case]
    model, x = Sequence(kind, reads, **options).eval(), torch.randn(3, 5, 4)
    gm = capture(model, x)
    small = shrink(gm, random_plan(analyze(gm), seed=1, balanced=True))
    wanted = small(x)
    Lift()(small)
    rnn = small.get_submodule("rnn")
    assert isinstance(rnn, nn.RNNBase)
    assert (rnn.input_size, rnn.hidden_size) == (3, 4)
    torch.testing.assert_close(small(x), wanted)
    scope: dict[str, Any] = {}
    exec(module_source(small), scope)
    fresh = scope["Sequence"]()
    fresh.load_state_dict(small.state_dict())
    torch.testing.assert_close(fresh.eval()(x), wanted)


def test_several_results_are_unpacked_as_people_do() -> None:
    gm = clone(capture(Sequence("LSTM", "given", batch_first=True), torch.randn(3, 5, 4)))
    Lift()(gm)
    assert re.search(r"^    \w+, \(\w+, \w+\) = self\.rnn\(\w+, \(\w+, \w+\)\)$", gm.code, re.MULTILINE)
