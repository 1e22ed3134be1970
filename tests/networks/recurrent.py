"""Recurrent networks: a hidden unit is a row of every gate and a column of what the next step reads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.networks.examples import example, tokens

# All layers and directions share one tensor of states, so that they keep equally many of their own units.


@example("embed.weight 5, rnn.weight_ih_l0 4", tokens, kind=nn.LSTM, name="LSTM")
@example("embed.weight 5, rnn.weight_ih_l0 8/2", tokens, kind=nn.LSTM, layers=2, name="LSTMOfTwoLayers")
@example("embed.weight 5, rnn.weight_ih_l0 8/2", tokens, kind=nn.LSTM, both=True, name="LSTMBothWays")
@example("embed.weight 5, rnn.weight_ih_l0 4", tokens, kind=nn.GRU, name="GRU")
@example(
    "embed.weight 5, rnn.weight_ih_l0 16/4", tokens, kind=nn.GRU, layers=2, both=True, name="GRUOfTwoLayersBothWays"
)
@example("embed.weight 5, rnn.weight_ih_l0 4", tokens, kind=nn.RNN, name="RNN")
class Recurrent(nn.Module):
    """A recurrent layer over tokens; its last state is read."""

    def __init__(self, kind: Callable[..., nn.Module], layers: int = 1, both: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 5)
        self.rnn = kind(5, 4, layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(8 if both else 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.tanh(self.embed(x)))[0].mean(1))
