"""What each operator does to the signal once a network is made linear, as SynFlow and SynExp see it.

A *signal* is a float value that depends on an input. The run on numbers (`linearised`) and the one on expressions
(`synexp`) both follow `Signals.kind_of`, and nothing else.
"""

from __future__ import annotations

import operator
from enum import Enum, auto

import torch
from torch import Tensor, fx
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils import _pytree as pytree

from fxprune.calls import argument, attribute, source_of, tensor_arguments
from fxprune.errors import RewriteError, describe
from fxprune.widths.layers import WEIGHTED

aten = torch.ops.aten


class Kind(Enum):
    """What an operator does to signals."""

    OTHER = auto()  # it has to do with none, and runs as it is
    SOURCE = auto()  # a signal out of what is none: ones
    MOVE = auto()  # moves, means, sums, interpolation: runs as it is
    PASS = auto()  # activations, normalisations, constants added or multiplied: the signal as it came
    SCALE = auto()  # times a number, or by a number: the absolute value
    GATE = auto()  # an open gate, 1, or an even share of attention
    ATTEND = auto()  # attention in one call: the mean of the values
    POOL = auto()  # a maximum becomes a mean
    PAD = auto()  # with zeros, or with what is there
    JOIN = auto()  # constants beside a signal are zeros
    ADD = auto()
    MULTIPLY = auto()  # two signals
    CONTRACT = auto()  # with a weight; the bias is zero


MATRIX_PRODUCTS = {aten.matmul, aten.mm, aten.bmm, aten.einsum}
# Gates, and what divides, where they do nothing but multiply other signals.
GATES = {aten.sigmoid, aten.hardsigmoid, aten.softmax, aten.rsqrt, aten.reciprocal}
# Of a tensor, only its shape is read.
SHAPES = {
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like, aten.randn_like, aten.new_zeros,
    aten.new_ones, aten.new_full, aten.new_empty,
}  # fmt: skip
JOINS = dict.fromkeys((aten.cat, aten.concat, aten.stack, aten.slice_scatter, aten.select_scatter), Kind.JOIN)
MOVES = (
    aten.roll, aten.flip, aten.index, aten.index_select, aten.gather, aten.repeat, aten.tile, aten.repeat_interleave,
    aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.im2col, aten.col2im, aten._unsafe_view,
    aten.lift_fresh_copy, aten.tril, aten.triu, aten.sum, aten.mean, aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d,
    aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d, aten.grid_sampler,
    aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d, aten._upsample_nearest_exact1d,
    aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d, aten.upsample_linear1d, aten.upsample_bilinear2d,
    aten.upsample_bicubic2d, aten.upsample_trilinear3d, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa,
)  # fmt: skip
PASSES = (
    aten.batch_norm, aten._native_batch_norm_legit_no_training, aten.instance_norm, aten.layer_norm, aten.group_norm,
    aten.rms_norm, aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout, aten.softmax,
    aten.log_softmax, aten.prelu, aten.hardswish, aten.celu, aten.selu, aten.rrelu, aten.log_sigmoid, aten._to_copy,
    aten.where, aten.copy_,
)  # fmt: skip
POOLS = (
    aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.max_pool2d_with_indices, aten.adaptive_max_pool1d,
    aten.adaptive_max_pool2d, aten.adaptive_max_pool3d, aten.amax, aten.max,
)  # fmt: skip
OF_ONE = {
    **JOINS,
    **dict.fromkeys(MOVES, Kind.MOVE),
    **dict.fromkeys((*PASSES, aten.to, aten.type_as), Kind.PASS),
    **dict.fromkeys(POOLS, Kind.POOL),
    **dict.fromkeys((aten.pad, aten.constant_pad_nd), Kind.PAD),
}
OF_SEVERAL = {
    **JOINS,
    **dict.fromkeys((aten.add, aten.sub), Kind.ADD),
    **dict.fromkeys((aten.mul, *MATRIX_PRODUCTS), Kind.MULTIPLY),
    **dict.fromkeys((aten.div, aten.type_as), Kind.PASS),  # what a signal is divided by normalises it
    aten.scaled_dot_product_attention: Kind.ATTEND,
}


class Signals:
    """Which values of a captured graph are signals, and what its operators do to them."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._names = {id(parameter): name for name, parameter in gm.named_parameters()}
        self._dependent: set[fx.Node] = set()
        for node in gm.graph.nodes:
            reads = node.op == "placeholder" or not self._dependent.isdisjoint(node.all_input_nodes)
            if reads and _tensors(node) and packet_of(node) not in SHAPES:
                self._dependent.add(node)

    @property
    def layers(self) -> tuple[str, ...]:
        """The parameters that signals are multiplied by in contractions, in the order of their first call."""
        names = (self.layer_of(node) for node in self._gm.graph.nodes if self.kind_of(node) is Kind.CONTRACT)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def __contains__(self, node: fx.Node) -> bool:
        return node in self._dependent and _is_float(node)

    def read_by(self, node: fx.Node) -> list[fx.Node]:
        """The signals among the arguments of a node, in order, each as often as it is there."""
        leaves = pytree.tree_leaves((node.args, node.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, fx.Node) and leaf in self]

    def kind_of(self, node: fx.Node) -> Kind:
        """What a node does to its signals. Raises RewriteError where nothing linear stands for it."""
        signals = self.read_by(node)
        if node.op != "call_function" or node not in self:
            if signals and any(value.is_complex() for value in _tensors(node)):
                raise refused(node, "complex numbers")
            return Kind.OTHER
        if node.target is operator.getitem:
            return Kind.MOVE
        if not isinstance(node.target, OpOverload):
            raise refused(node, "it is no ATen operator")
        if node.target is aten.embedding.default:
            return Kind.CONTRACT
        return self._of_several(node) if len(signals) > 1 else self._of_one(node) if signals else Kind.SOURCE

    def _of_several(self, node: fx.Node) -> Kind:
        assert isinstance(node.target, OpOverload)
        if node.target.is_view:  # of the others only the shape is read
            return Kind.MOVE
        if (kind := OF_SEVERAL.get(node.target.overloadpacket)) is None:
            raise refused(node, "of several signals it makes no sum, product or concatenation")
        return kind

    def _of_one(self, node: fx.Node) -> Kind:
        assert isinstance(node.target, OpOverload)
        packet = node.target.overloadpacket
        if node.target in WEIGHTED or packet in MATRIX_PRODUCTS:
            return Kind.CONTRACT
        if packet in GATES and self._only_multiplied(node):
            return Kind.GATE
        if packet in (aten.mul, aten.div) and len(tensor_arguments(node)) == 1:
            return Kind.SCALE
        if torch.Tag.pointwise in node.target.tags:
            return Kind.PASS
        if packet in OF_ONE:
            return OF_ONE[packet]
        if node.target.is_view:
            return Kind.MOVE
        raise refused(node, "nothing linear is known to stand for it")

    def _only_multiplied(self, node: fx.Node) -> bool:
        """Whether all that becomes of a signal is a factor of other signals."""
        passing = (Kind.PASS, Kind.MOVE, Kind.SCALE)
        return all(
            user.op == "call_function"
            and (
                self.kind_of(user) is Kind.MULTIPLY
                or (self.kind_of(user) in passing and len(self.read_by(user)) == 1 and self._only_multiplied(user))
            )
            for user in node.users
        )

    def weight_of(self, node: fx.Node) -> fx.Node:
        """The parameter or buffer that a contraction multiplies by. Raises RewriteError where that is computed."""
        if node.target in WEIGHTED or node.target is aten.embedding.default:
            weight: fx.Node = argument(node, "weight")
        else:
            weight = next(source for source in node.all_input_nodes if source not in self)
        while isinstance(weight.target, OpOverload) and weight.target.is_view:
            weight = source_of(weight)
        if weight.op != "get_attr":
            raise refused(node, f"its weight is computed by {describe(weight)}")
        return weight

    def layer_of(self, node: fx.Node) -> str | None:
        """The name of the parameter that a contraction multiplies by; None for a buffer."""
        return self.name_of(self.weight_of(node))

    def name_of(self, node: fx.Node) -> str | None:
        """The first name of the parameter that a node gets; None for anything else."""
        return self._names.get(id(attribute(self._gm, str(node.target))))


def _tensors(node: fx.Node) -> list[Tensor]:
    """The tensors that a node gives: one, several or none."""
    return [leaf for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]


def _is_float(node: fx.Node) -> bool:
    return any(value.is_floating_point() for value in _tensors(node))


def packet_of(node: fx.Node) -> OpOverloadPacket | None:
    """The operator of a call, whatever its overload; None where a node calls none."""
    return node.target.overloadpacket if isinstance(node.target, OpOverload) else None


def refused(node: fx.Node, reason: str) -> RewriteError:
    """The error that names a node for which nothing linear stands."""
    return RewriteError(f"no synaptic flow is defined through {describe(node)}: {reason}")
