"""SynExp: the expectation of the SynFlow score over weights and masks, as an expression and as a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor, fx

from fxprune.calls import argument, attribute, concrete, concrete_shape
from fxprune.errors import PlanError
from fxprune.widths.layers import WEIGHTED
from fxprune.widths.linearised import linearised
from fxprune.widths.signals import MATRIX_PRODUCTS, Kind, Signals, packet_of

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class SynExp:
    """The expected SynFlow score of a network as a function of the densities of its layers.

    Along one path it is N_out * prod over the layers l of p_l * N_l * m_l, where a sum of layer l has N_l terms. Paths
    that meet in an addition add up; in a concatenation they count by their shares. A tensor has one expectation, that
    of positions which no convolution's padding reaches: `expected_synflow` has borders, and channels that differ.
    Source: Cai et al., Structured Pruning of CNNs at Initialization (arXiv 2203.02549).

    densities: the symbol p_l of each layer, by the name of its weight; the classifier is one of them.
    scales: the symbol m_l of each layer, for its mean absolute weight.
    means: the value of m_l.
    steps: each symbol with what it is, in order; the last one is the score. An expression that is written out grows
        exponentially with the depth of a densely connected network, the steps do not.
    """

    densities: Mapping[str, sympy.Symbol]
    scales: Mapping[str, sympy.Symbol]
    means: Mapping[str, float]
    steps: tuple[tuple[sympy.Symbol, sympy.Expr], ...]

    @property
    def expression(self) -> sympy.Expr:
        """The score with all steps written out; for small networks."""
        known: dict[sympy.Symbol, sympy.Expr] = {}
        for symbol, expression in self.steps:
            known[symbol] = expression.xreplace(known)
        return known[self.steps[-1][0]]

    def evaluate(self, densities: Mapping[str, float] | None = None) -> float:
        """The log of the score at these densities; a layer that is left out has density 1.

        Raises PlanError where a density is no number from 0 on, or of no layer.
        """
        return self._log_score(densities or {}, self.means)

    def gain(self, densities: Mapping[str, float]) -> float:
        """The log of the score at these densities over that of the original: negative where layers are thinned.

        A layer that starts from zeros, as some classifiers do, counts as one of ones. Raises as `evaluate` does.
        """
        means = {name: mean or 1.0 for name, mean in self.means.items()}
        return self._log_score(densities, means) - self._log_score({}, means)

    def _log_score(self, densities: Mapping[str, float], means: Mapping[str, float]) -> float:
        for name, density in densities.items():
            if name not in self.densities:
                raise PlanError(f"{name!r} is no layer that the synaptic flow passes")
            if not 0 <= density < math.inf:
                raise PlanError(f"{density!r} is no density of {name!r}: it must be a number from 0 on")
        logs = {self.scales[name]: _log(mean) for name, mean in means.items()}
        logs |= {symbol: _log(densities.get(name, 1.0)) for name, symbol in self.densities.items()}
        for symbol, expression in self.steps:
            logs[symbol] = _log_of(expression, logs)
        return logs[self.steps[-1][0]]


def _log(number: float) -> float:
    return math.log(number) if number else -math.inf


def _log_of(expression: sympy.Expr, logs: Mapping[sympy.Symbol, float]) -> float:
    """The log of a sum of monomials, where those of the symbols are known."""
    terms = []
    for term in sympy.Add.make_args(expression):
        powers = (factor.as_base_exp() for factor in sympy.Mul.make_args(term))
        terms.append(math.fsum(float(n) * (logs[b] if b in logs else _log(float(b))) for b, n in powers))
    largest = max(terms)
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms)) if largest > -math.inf else largest


def synexp(gm: fx.GraphModule) -> SynExp:
    """The SynExp of a captured graph. For what is linear in it, and what is refused, see `linearised`."""
    return _Expectations(gm).made()


def expected_synflow(
    gm: fx.GraphModule, densities: Mapping[str, float] | None = None, *, over_weights: bool = True
) -> float:
    """The log of the expected SynFlow score, run on numbers, with zero padding as it is: the log of SynExp.

    densities: of layers, by the names of `SynExp.densities`; a layer that is left out has density 1.
    over_weights: over weights and masks, where p_l * mean|W_l| stands for each weight w of layer l; else over masks
        alone, where p_l * |w| does.
    """
    given = densities or {}
    made = {}
    for name in Signals(gm).layers:
        weight = gm.get_parameter(name).detach().double().abs()
        made[name] = given.get(name, 1.0) * (weight.mean().expand_as(weight) if over_weights else weight)
    return float(linearised(gm, made))


def synflow(gm: fx.GraphModule, masks: Mapping[str, Tensor] | None = None) -> float:
    """The log of the SynFlow score of the network with the weights that it has.

    masks: what the absolute values of parameters are multiplied by, by name, broadcastable to them.
    """
    masked = {name: gm.get_parameter(name).detach().double().abs() * mask for name, mask in (masks or {}).items()}
    return float(linearised(gm, masked))


class _Expectations:
    """Carries the expectation of each signal through a graph, as an expression."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm, self.signals = gm, Signals(gm)
        self.values: dict[fx.Node, sympy.Expr] = {}
        self.steps: list[tuple[sympy.Symbol, sympy.Expr]] = []
        self.densities, self.scales = _symbols("p", self.signals.layers), _symbols("m", self.signals.layers)

    def made(self) -> SynExp:
        """The value that this is for."""
        for node in self.gm.graph.nodes:
            if node.op == "output":
                score = sympy.Add(*(_count(made) * self.values[made] for made in self.signals.read_by(node)))
                self.steps.append((sympy.Symbol("S", positive=True), score / _samples(self.gm)))
            elif node in self.signals:
                self.values[node] = self._step(_RULES[self.signals.kind_of(node)](self, node))
        means = {name: _mean_size(self.gm.get_parameter(name)) for name in self.densities}
        return SynExp(self.densities, self.scales, means, tuple(self.steps))

    def _step(self, value: sympy.Expr) -> sympy.Expr:
        """A symbol for a value, unless it is a number or symbol already."""
        if value.is_Number or value.is_Symbol:
            return value
        symbol = sympy.Symbol(f"x{len(self.steps) + 1}", positive=True)
        self.steps.append((symbol, value))
        return symbol

    def read_by(self, node: fx.Node) -> list[sympy.Expr]:
        """The expectations of the signals among the arguments of a node, in order."""
        return [self.values[source] for source in self.signals.read_by(node)]

    def weight_of(self, node: fx.Node) -> sympy.Expr:
        """The expectation of the weight of a contraction: a number where it is a buffer, and no layer."""
        if (name := self.signals.layer_of(node)) is not None:
            return self.densities[name] * self.scales[name]
        return sympy.Float(_mean_size(attribute(self.gm, str(self.signals.weight_of(node).target))))


def _symbols(letter: str, layers: tuple[str, ...]) -> dict[str, sympy.Symbol]:
    return {name: sympy.Symbol(f"{letter}_{name.removesuffix('.weight')}", positive=True) for name in layers}


def _mean_size(weight: Tensor) -> float:
    return float(weight.detach().double().abs().mean())


def _count(node: fx.Node) -> sympy.Integer:
    """Elements of the value of a node."""
    return sympy.Integer(math.prod(concrete_shape(node)))


def _samples(gm: fx.GraphModule) -> int:
    """How many samples the graph was captured with, where their number may change; else 1, all that there is."""
    shapes = [node.meta["val"].shape for node in gm.graph.nodes if node.op == "placeholder" and _is_batch(node)]
    return concrete(shapes[0][0]) if shapes else 1


def _is_batch(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim > 0 and isinstance(value.shape[0], torch.SymInt)


def _moved(run: _Expectations, node: fx.Node) -> sympy.Expr:
    """The same, but a sum is as many times as much as it adds up."""
    value = run.read_by(node)[0]
    is_sum = str(node.target).startswith("aten.sum.")
    return value * _count(run.signals.read_by(node)[0]) / _count(node) if is_sum else value


def _scaled(run: _Expectations, node: fx.Node) -> sympy.Expr:
    other = argument(node, "other")
    number = abs(sympy.sympify(concrete(other) if isinstance(other, fx.Node) else other))
    value = run.read_by(node)[0]
    return value / number if packet_of(node) is aten.div else value * number


def _gate(run: _Expectations, node: fx.Node) -> sympy.Expr:
    is_share = node.target is aten.softmax.int
    return sympy.Rational(1, concrete_shape(node)[argument(node, "dim")]) if is_share else sympy.S.One


def _padded(run: _Expectations, node: fx.Node) -> sympy.Expr:
    """The mean with the zeros."""
    share = _count(run.signals.read_by(node)[0]) / _count(node)
    zeros = argument(node, "mode", "constant") == "constant"
    return run.read_by(node)[0] * (min(sympy.S.One, share) if zeros else 1)


def _joined(run: _Expectations, node: fx.Node) -> sympy.Expr:
    """The mean of the operands by their shares of the positions; what is written into another takes its place."""
    sources = run.signals.read_by(node)
    shares = [_count(source) / _count(node) for source in sources]
    if "scatter" in str(node.target) and sources[0] is node.args[0]:
        shares[0] -= sum(shares[1:])
    return sympy.Add(*(share * run.values[source] for share, source in zip(shares, sources, strict=True)))


def _added(run: _Expectations, node: fx.Node) -> sympy.Expr:
    first, second = run.read_by(node)
    return first + abs(sympy.sympify(argument(node, "alpha"))) * second


def _multiplied(run: _Expectations, node: fx.Node) -> sympy.Expr:
    """The product of signals, and the number of products that are summed."""
    return sympy.Mul(_summed(node), *run.read_by(node))


def _contracted(run: _Expectations, node: fx.Node) -> sympy.Expr:
    """The fan-in, times the expectation of the weight, times that of the signal."""
    return sympy.Mul(_fan_in(node), run.weight_of(node), *run.read_by(node))


def _fan_in(node: fx.Node) -> sympy.Expr:
    """How many inputs a sum of a contraction has; of a transposed convolution, on average over its positions."""
    if node.target not in WEIGHTED:
        return _summed(node)
    shape = concrete_shape(argument(node, "weight"))
    if "transpose" not in str(node.target):
        return sympy.Integer(math.prod(shape[1:] if len(shape) > 1 else shape))
    kernel, stride = shape[2:], argument(node, "stride")
    steps = math.prod(stride) ** (len(kernel) if len(stride) == 1 else 1)
    return sympy.Rational(shape[0] * math.prod(kernel), argument(node, "groups") * steps)


def _summed(node: fx.Node) -> sympy.Integer:
    """How many products a result of a matrix product is the sum of: what it gives for ones. 1 for all else."""
    if packet_of(node) not in MATRIX_PRODUCTS:
        return sympy.S.One
    assert callable(node.target)
    args = fx.map_arg(node.args, lambda source: torch.ones(concrete_shape(source)))
    return sympy.Integer(round(float(node.target(*args).flatten()[0])))


_RULES: dict[Kind, Callable[[_Expectations, fx.Node], sympy.Expr]] = {
    Kind.OTHER: lambda run, node: sympy.S.One,  # an input
    Kind.SOURCE: lambda run, node: sympy.S.One,
    Kind.MOVE: _moved,
    Kind.PASS: _moved,
    Kind.POOL: _moved,
    Kind.SCALE: _scaled,
    Kind.GATE: _gate,
    Kind.ATTEND: lambda run, node: run.values[argument(node, "value")],
    Kind.PAD: _padded,
    Kind.JOIN: _joined,
    Kind.ADD: _added,
    Kind.MULTIPLY: _multiplied,
    Kind.CONTRACT: _contracted,
}
