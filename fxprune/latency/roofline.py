"""The roofline: the time of each piece from what it computes, reads and writes, fitted to what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import sympy
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import fx

from fxprune.cost import Cost, batch_symbols, bytes_of
from fxprune.flops import Sizes
from fxprune.latency.pieces import Piece, pieces_of
from fxprune.types import Coupling

Floats = NDArray[np.float64]
NANO = 1e9  # nanoseconds a second: a cost is a whole number


class Sample(NamedTuple):
    """What was measured of the network at given widths.

    seconds: of each piece, by its name.
    weight: how many others it counts for.
    """

    widths: Mapping[str, int]
    seconds: Mapping[str, float]
    weight: float = 1.0

    @property
    def total(self) -> float:
        """Seconds of all pieces."""
        return math.fsum(self.seconds.values())


@dataclass(frozen=True)
class Latencies:
    """What was measured of one network at several widths.

    manner: on which machine, and how.
    scale: seconds of the whole original over the sum of those of its pieces.
    """

    manner: str
    scale: float
    samples: tuple[Sample, ...]

    def nanoseconds(self, sample: Sample) -> float:
        """What the pieces of a sample add up to, scaled to the whole."""
        return NANO * self.scale * sample.total

    def to_json(self) -> str:
        """As JSON text; `Latencies.from_json` is its inverse."""
        return json.dumps([self.manner, self.scale, self.samples])

    @staticmethod
    def from_json(text: str) -> Latencies:
        """What `to_json` wrote."""
        manner, scale, samples = json.loads(text)
        return Latencies(manner, scale, tuple(Sample(*sample) for sample in samples))


class Roofline:
    """The time of a network as a polynomial in the widths of its groups, without negative factors.

    Each piece takes a constant, and so much for each FLOP, and for each byte of the activations that it reads, of the
    parameters that it reads, and of what it writes. The factors are fitted to samples, by least squares of the
    relative errors. Source: Williams, Waterman, Patterson, "Roofline" (2009), with a sum where that has a maximum.
    """

    def __init__(self, gm: fx.GraphModule, coupling: Coupling, cost: Cost, fused: bool) -> None:
        self._symbols = list(cost.symbols.values())
        self._cost = cost
        sizes = Sizes(coupling, self._symbols, batch_symbols(gm))
        self._terms = {name: _terms(piece, cost, sizes) for name, piece in pieces_of(gm, fused).items()}
        self._at = sympy.lambdify(self._symbols, list(self._terms.values()), "numpy", cse=True)

    def fitted(self, found: Latencies) -> sympy.Expr:
        """Nanoseconds, in the widths."""
        tables = [self._evaluated(sample.widths) for sample in found.samples]
        weights = np.array([sample.weight for sample in found.samples])
        total = sympy.S.Zero
        for number, (name, terms) in enumerate(self._terms.items()):
            rows = np.array([table[number] for table in tables], dtype=np.float64)
            seconds = np.array([sample.seconds[name] for sample in found.samples])
            factors = NANO * found.scale * _factors(rows, seconds, weights)
            total += sympy.Add(*(factor * term for factor, term in zip(factors.tolist(), terms, strict=True) if factor))
        return total

    def measured(self, found: Latencies) -> sympy.Expr:
        """As `fitted`, straightened so that it is what was measured of the first and of the last sample.

        Where noise has led to a fit that does not tell the two apart, FLOPs and parameters do.
        """
        ends = (found.samples[0], found.samples[-1])
        slow, fast = map(found.nanoseconds, ends)
        fitted = self.fitted(found)
        for shape in (fitted, self._cost.flops + self._cost.params):
            at = sympy.lambdify(self._symbols, shape, "math")
            first, last = (at(*self._widths(sample.widths)) for sample in ends)
            if (first - last) * (slow - fast) > 0:
                return (slow - fast) / (first - last) * (shape - first) + slow
        return fitted

    def _widths(self, widths: Mapping[str, int]) -> list[int]:
        return [widths.get(name, self._cost.widths[name]) for name in self._cost.symbols]

    def _evaluated(self, widths: Mapping[str, int]) -> list[list[float]]:
        found: list[list[float]] = self._at(*self._widths(widths))
        return found


def _terms(piece: Piece, cost: Cost, sizes: Sizes) -> list[sympy.Expr]:
    """What the time of a piece may depend on: 1, and what changes with the widths."""
    parameters = [node for node in piece.inputs if node.op == "get_attr"]
    activations = [node for node in piece.inputs if node.op != "get_attr"]
    terms = [
        sympy.Add(*(cost.by_node.get(node.name, sympy.S.Zero) for node in piece.calls)),
        *(_bytes(nodes, sizes) for nodes in (activations, parameters, piece.outputs)),
    ]
    return [sympy.S.One, *dict.fromkeys(term for term in terms if term.free_symbols)]


def _bytes(nodes: Iterable[fx.Node], sizes: Sizes) -> sympy.Expr:
    tensors = (node for node in nodes if isinstance(node.meta.get("val"), torch.Tensor))
    return sympy.Add(*(bytes_of(node, sizes) for node in tensors))


def _factors(terms: Floats, seconds: Floats, weights: Floats) -> Floats:
    """Factors from 0 with which the terms [samples, terms] add up to the seconds, up to least relative errors."""
    roots = np.sqrt(weights)
    rows = terms * (roots / seconds)[:, None]
    lengths = np.linalg.norm(rows, axis=0)
    found, _ = nnls(rows / lengths, roots)
    return np.asarray(found / lengths)
