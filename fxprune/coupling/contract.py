"""Contractions: broadcast, unify, reduce. Linear, matmul, einsum, attention and convolution are one function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import fx

from fxprune.calls import Shape, argument, concrete_shape, source_of
from fxprune.coupling.flow import Flow, rule
from fxprune.coupling.operand import Fields, Operand, broadcast_shape, laid_along, support
from fxprune.errors import describe
from fxprune.types import Axis

aten = torch.ops.aten
_BATCH = "ABCDEFGH"  # labels of leading axes, the last of them next to the matrices


class Term(NamedTuple):
    """One factor of a product: its value with a label for each axis, and the node it comes from."""

    value: Operand
    labels: str
    node: fx.Node


def contract(flow: Flow, terms: Sequence[Term], result: str, node: fx.Node) -> Fields:
    """Fields of the product of `terms`, summed over the labels that `result` lacks; axes are as in `result`."""
    labels = result + "".join(sorted({label for term in terms for label in term.labels} - set(result)))
    if flow.heads:
        terms = _whole_heads(flow, terms, result, node)
    operands = [_spread(term, labels) for term in terms]
    shape = broadcast_shape(operand.shape for operand in operands)
    fields = flow.unify(operands, shape, node, any)
    constant = not any(term.node in flow.activations for term in terms)
    for position, term in enumerate(terms, 1):  # in a product of weights, the last one makes what the others read
        _note_roles(flow, term, term.labels if constant and position == len(terms) else result)
    return flow.reduce(fields, range(len(result), len(labels)), False, node)


def _spread(term: Term, labels: str) -> Operand:
    """The value with an axis for each of `labels`, of size 1 where it has none."""
    order = [term.labels.index(label) for label in labels if label in term.labels]
    shape = iter(term.value.shape[axis] for axis in order)
    full = tuple(next(shape) if label in term.labels else 1 for label in labels)
    fields = []
    for item in term.value.fields:
        sizes = iter([item.ids.shape[axis] for axis in order])
        ids = item.ids.permute(order).reshape([next(sizes) if label in term.labels else 1 for label in labels])
        fields.append(replace(item, ids=ids, axis=labels.index(term.labels[item.axis])))
    return Operand(full, tuple(fields))


def _whole_heads(flow: Flow, terms: Sequence[Term], result: str, node: fx.Node) -> list[Term]:
    """In a product of activations nothing but its batch shrinks, along which the heads lie: whole heads leave."""
    batch = set(result).intersection(*(term.labels for term in terms))
    if len(terms) < 2 or not all(term.node in flow.activations for term in terms):
        return list(terms)
    if not any(
        term.labels[axis] in batch for term in terms for item in term.value.fields for axis in support(item.ids)
    ):
        return list(terms)  # no heads here
    found = []
    for term in terms:
        fields: Fields = ()
        for item in term.value.fields:
            inside = [axis for axis in support(item.ids) if term.labels[axis] not in batch]
            if 0 < len(inside) < len(support(item.ids)):
                flow.whole.append((item, inside))
            fields += flow.fix((item,), inside, f"heads leave whole from {describe(node)}")
        found.append(term._replace(value=Operand(term.value.shape, flow.one_an_axis(fields, node))))
    return found


def _note_roles(flow: Flow, term: Term, result: str) -> None:
    """An axis of a weight that `result` lacks is read by the contraction; the others are made by it."""
    root = term.node
    while root.op == "call_function" and len(root.all_input_nodes) == 1:
        root = root.all_input_nodes[0]
    if root.op != "get_attr":
        return
    found: dict[tuple[int, ...], int] = {}  # of square weights that feed themselves, both axes have the same units
    for item in sorted(term.value.fields, key=lambda item: item.axis):
        units = tuple(item.ids.unique().tolist())
        axes = [born.axis for born in flow.values[root] if tuple(born.ids.unique().tolist()) == units]
        if found.get(units, 0) < len(axes):
            roles = flow.produced if term.labels[item.axis] in result else flow.consumed
            roles.add(Axis(str(root.target), sorted(axes)[found.get(units, 0)]))
            found[units] = found.get(units, 0) + 1


@rule(aten.linear.default)
def linear(flow: Flow, node: fx.Node) -> Fields:
    """x[.., i] * w[o, i], summed over i."""
    source, weight = argument(node, "input"), argument(node, "weight")
    value, filters = flow.operand(source), flow.operand(weight)
    batch = _BATCH[: len(value.shape) - 1]
    outer = "oi" if len(filters.shape) == 2 else "i"
    fields = contract(flow, [Term(value, f"{batch}i", source), Term(filters, outer, weight)], batch + outer[:-1], node)
    return _biased(flow, fields, argument(node, "bias"), len(batch), node)


@rule(aten.bilinear.default)
def bilinear(flow: Flow, node: fx.Node) -> Fields:
    """x[.., i] * w[o, i, j] * y[.., j], summed over i and j."""
    sources = [argument(node, name) for name in ("input1", "weight", "input2")]
    batch = _BATCH[: len(concrete_shape(node)) - 1]
    labels = (f"{batch}i", "oij", f"{batch}j")
    terms = [Term(flow.operand(source), text, source) for source, text in zip(sources, labels, strict=True)]
    fields = contract(flow, terms, f"{batch}o", node)
    return _biased(flow, fields, argument(node, "bias"), len(batch), node)


@rule(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default)
def matmul(flow: Flow, node: fx.Node) -> Fields:
    """x[.., r, i] * y[.., i, c], summed over i; a lone axis is i."""
    left, right = node.all_input_nodes if len(node.all_input_nodes) == 2 else node.all_input_nodes * 2
    return _matrices(flow, left, right, node)


@rule(aten.addmm.default, aten.baddbmm.default)
def matmul_plus(flow: Flow, node: fx.Node) -> Fields:
    """A product of matrices and a term that is broadcast to it."""
    names = ("mat1", "mat2") if node.target is aten.addmm.default else ("batch1", "batch2")
    fields = _matrices(flow, argument(node, names[0]), argument(node, names[1]), node)
    shape = concrete_shape(node)
    return flow.unify([Operand(shape, fields), flow.operand(source_of(node))], shape, node)


def _matrices(flow: Flow, left: fx.Node, right: fx.Node, node: fx.Node) -> Fields:
    x, y = flow.operand(left), flow.operand(right)
    rows, columns = "r" if len(x.shape) > 1 else "", "c" if len(y.shape) > 1 else ""
    depths = len(x.shape) - 1 - len(rows), len(y.shape) - 1 - len(columns)
    first, second = (_BATCH[max(depths) - depth : max(depths)] for depth in depths)
    terms = [
        Term(x, f"{first}{rows}i", left),
        Term(y, f"{second}i{columns}", right),
    ]
    return contract(flow, terms, _BATCH[: max(depths)] + rows + columns, node)


@rule(aten.einsum.default)
def einsum(flow: Flow, node: fx.Node) -> Fields:
    """Any product, by its equation."""
    equation, sources = argument(node, "equation").replace(" ", ""), argument(node, "tensors")
    inputs, _, result = equation.partition("->")
    labels = inputs.split(",")
    if "->" not in equation:
        single = sorted(label for label in set(inputs) - set(",.") if inputs.count(label) == 1)
        result = ("..." if "..." in inputs else "") + "".join(single)
    ranks = [len(concrete_shape(source)) for source in sources]
    depth = max((rank - len(text) + 3 for text, rank in zip(labels, ranks, strict=True) if "..." in text), default=0)
    spare = "".join(chr(ord("À") + index) for index in range(depth))
    terms = []
    for source, text, rank in zip(sources, labels, ranks, strict=True):
        own = spare[depth - (rank - len(text) + 3) :] if "..." in text else ""
        text = text.replace("...", own)
        if len(set(text)) < len(text):
            flow.hold(flow.values[source], f"a diagonal is read by {describe(node)}")
            return ()
        terms.append(Term(flow.operand(source), text, source))
    return contract(flow, terms, result.replace("...", spare), node)


@rule(aten.scaled_dot_product_attention.default)
def attention(flow: Flow, node: fx.Node) -> Fields:
    """softmax(q k') v: the dimensions of q and k end in the scores, those of v come out."""
    query, key, value = (argument(node, name) for name in ("query", "key", "value"))
    q = flow.operand(query)
    heads = q.shape[-3] if len(q.shape) > 3 else 0
    k, v = (_repeated_heads(flow, flow.operand(source), heads) for source in (key, value))
    batch = _BATCH[: len(q.shape) - 2]
    scores = contract(flow, [Term(q, f"{batch}qi", query), Term(k, f"{batch}ki", key)], f"{batch}qk", node)
    shape = (*q.shape[:-1], k.shape[-2])
    mask = argument(node, "attn_mask")
    if mask is not None:
        scores = flow.unify([Operand(shape, scores), flow.operand(mask)], shape, node)
    scores = flow.fix(scores, [len(shape) - 1], f"compared with one another by {describe(node)}")
    weights = Operand(shape, tuple(replace(item, zero=False) for item in scores))
    return contract(flow, [Term(weights, f"{batch}qk", query), Term(v, f"{batch}kc", value)], f"{batch}qc", node)


def _repeated_heads(flow: Flow, value: Operand, heads: int) -> Operand:
    """Keys or values of grouped queries, each head as often as queries share it."""
    if not heads or value.shape[-3] == heads:
        return value
    dim, count = len(value.shape) - 3, heads // value.shape[-3]
    fields: Fields = ()
    for item in value.fields:
        ids = item.ids.repeat_interleave(count, dim) if item.ids.shape[dim] > 1 else item.ids
        fields += flow.normalized(ids, (item.axis,), item.zero)
    return Operand((*value.shape[:dim], heads, *value.shape[dim + 1 :]), fields)


@rule(aten.conv1d, aten.conv2d, aten.conv3d)
def convolution(flow: Flow, node: fx.Node) -> Fields:
    """x[b, group, i] * w[group, o, i], summed over i; image and kernel do not shrink."""
    shape = concrete_shape(argument(node, "weight"))
    groups = argument(node, "groups")
    return _convolved(flow, node, (groups, shape[0] // groups, shape[1]), "goi")


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def transposed_convolution(flow: Flow, node: fx.Node) -> Fields:
    """x[b, group, i] * w[group, i, o], summed over i."""
    shape = concrete_shape(argument(node, "weight"))
    groups = argument(node, "groups")
    return _convolved(flow, node, (groups, shape[0] // groups, shape[1]), "gio")


def _convolved(flow: Flow, node: fx.Node, split: Shape, labels: str) -> Fields:
    source, weight = argument(node, "input"), argument(node, "weight")
    value, filters = flow.operand(source), flow.operand(weight)
    if len(value.shape) != len(filters.shape):
        for operand in (value, filters):
            flow.hold(operand.fields, f"an input without a batch dimension in {describe(node)}")
        return ()
    (batch, channels), image, groups = value.shape[:2], value.shape[2:], split[0]
    mixed = [axis for axis in range(2, len(value.shape)) if not _is_pointwise(node, axis - 2)]
    fields = flow.fix(value.fields, mixed, f"an image axis of {describe(node)}")
    spread = (batch, groups, channels // groups, *image)
    x = flow.reshape(fields, value.shape, spread, node)
    kernel = flow.fix(filters.fields, range(2, len(filters.shape)), f"kernel extent of {describe(node)}")
    flat = tuple(replace(item, ids=item.ids.flatten(2)[..., 0]) for item in kernel)
    w = flow.reshape(flat, filters.shape[:2], split, node)
    extent = "xyz"[: len(image)]
    terms = [Term(Operand(spread, x), f"bgi{extent}", source), Term(Operand(split, w), labels, weight)]
    out = split[labels.index("o")]
    made = contract(flow, terms, f"bgo{extent}", node)
    made = flow.reshape(made, (batch, groups, out, *image), (batch, groups * out, *image), node)
    return _biased(flow, made, argument(node, "bias"), 1, node)


def _is_pointwise(node: fx.Node, axis: int) -> bool:
    """Whether a convolution leaves an image axis as it is: a kernel of size 1, no stride, no padding."""
    if concrete_shape(argument(node, "weight"))[2 + axis] > 1:
        return False
    padding = argument(node, "padding")
    return all(
        values[axis % len(values)] == neutral
        for values, neutral in ((argument(node, "stride"), 1), ([0] if isinstance(padding, str) else padding, 0))
    )


def _biased(flow: Flow, fields: Fields, bias: fx.Node | None, axis: int, node: fx.Node) -> Fields:
    if bias is None:
        return fields
    shape = concrete_shape(node)
    return flow.unify([Operand(shape, fields), laid_along(flow.operand(bias), axis, len(shape))], shape, node)
