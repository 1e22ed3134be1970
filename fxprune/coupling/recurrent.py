"""Recurrent layers: the gates of a hidden unit, its row of states and the columns that read it leave together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fxprune.calls import RECURRENT, argument, concrete_shape
from fxprune.coupling.contract import Term, contract
from fxprune.coupling.flow import Flow, rule
from fxprune.coupling.operand import Fields, Operand
from fxprune.coupling.unify import unknown
from fxprune.errors import describe

aten = torch.ops.aten


@rule(*RECURRENT)
def recurrent(flow: Flow, node: fx.Node) -> Any:
    """Layers and directions of input weights, hidden weights and biases, and the states that they begin with.

    A hidden unit with zero weights stays zero if it begins so: tanh(0) and relu(0) are 0, and gates only scale.
    """
    states, weights, biased = argument(node, "hx"), argument(node, "params"), argument(node, "has_biases")
    states = list(states) if isinstance(states, (list, tuple)) else [states]
    directions = 2 if argument(node, "bidirectional") else 1
    count = 4 if biased else 2
    layers = [weights[start : start + count] for start in range(0, len(weights), count)]
    if len(layers) != directions * argument(node, "num_layers"):  # projections of the hidden state
        return unknown(flow, node)
    zeros = [state for state in states if state.target is aten.zeros.default and set(state.users) == {node}]
    start = [_rows(flow, state, len(layers), node) for state in states if state not in zeros]
    fields: Fields = flow.values[argument(node, "input")]
    shape = concrete_shape(argument(node, "input"))
    finals: list[Operand] = []
    for first in range(0, len(layers), directions):
        hidden = [
            _layer(flow, node, Operand(shape, fields), layers[index], [state[index] for state in start])
            for index in range(first, first + directions)
        ]
        finals += hidden
        fields = _side_by_side(flow, hidden, len(shape))
        shape = (*shape[:-1], sum(one.shape[0] for one in hidden))
    final = _stacked(flow, finals, len(shape))
    for state in zeros:  # they are as wide as the hidden states that they begin
        flow.values[state] = final
    return [fields, *[final] * len(states)]


def _layer(flow: Flow, node: fx.Node, value: Operand, weights: Sequence[fx.Node], states: Sequence[Operand]) -> Operand:
    """The hidden state of one direction of one layer, without batch and time: [hidden]."""
    into, back, *biases = weights
    hidden = concrete_shape(back)[1]
    batch = "ABCDEFGH"[: len(value.shape) - 1]
    gated = contract(flow, [Term(value, f"{batch}i", node), Term(flow.operand(into), "oi", into)], f"{batch}o", node)
    gates = concrete_shape(into)[0]
    operands = [Operand((gates,), tuple(replace(item, ids=item.ids.flatten(), axis=0) for item in gated))]
    operands += [flow.operand(bias) for bias in biases]
    rows = flow.operand(back)
    operands.append(Operand((gates,), tuple(replace(f, ids=f.ids[:, 0]) for f in rows.fields if f.axis == 0)))
    split = (gates // hidden, hidden)
    fields = flow.reshape(flow.unify(operands, (gates,), node), (gates,), split, node)
    fields = flow.fix(fields, (0,), f"gates of one hidden unit of {describe(node)}")
    state = Operand((hidden,), tuple(replace(item, ids=item.ids[0], axis=0) for item in fields))
    contract(flow, [Term(state, "i", node), Term(rows, "oi", back)], "o", node)
    return Operand((hidden,), flow.unify([state, *states], (hidden,), node))


def _rows(flow: Flow, state: fx.Node, layers: int, node: fx.Node) -> list[Operand]:
    """A state [layers, (batch,) hidden] as one operand a layer: [hidden]."""
    value = flow.operand(state)
    last = len(value.shape) - 1
    fields = flow.fix(value.fields, range(1, last), f"the state of {describe(node)}")
    found = []
    for index in range(layers):
        rows = (item.ids.select(0, index if item.ids.shape[0] > 1 else 0) for item in fields if item.axis == last)
        made = (one for ids in rows for one in flow.normalized(ids.flatten(), (0,)))
        found.append(Operand((value.shape[last],), tuple(made)))
    return found


def _side_by_side(flow: Flow, states: Sequence[Operand], rank: int) -> Fields:
    """The directions' states along the last of `rank` axes."""
    ids = torch.cat([_ids(state) for state in states])
    return flow.normalized(ids.reshape((1,) * (rank - 1) + (-1,)), (rank - 1,))


def _stacked(flow: Flow, states: Sequence[Operand], rank: int) -> Fields:
    """The final states of all layers and directions, one below the other."""
    ids = torch.stack([_ids(state) for state in states])
    return flow.normalized(ids.reshape(len(states), *(1,) * (rank - 2), -1), (rank - 1,))


def _ids(state: Operand) -> torch.Tensor:
    item = state.on(0)
    return item.ids.expand(state.shape) if item else torch.zeros(state.shape, dtype=torch.int64)
