"""Writes in place become plain calls: the analysis and the passes need not know what shares memory with what."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from fxprune.calls import attribute, source_of
from fxprune.capture.views import call, replayed, scattered, viewed
from fxprune.errors import CaptureError, describe

aten = torch.ops.aten


def functionalize(gm: fx.GraphModule) -> None:
    """Replaces, in place, `relu_(x)` by `relu(x)`, and later reads of x by reads of the result.

    A write through a view gives a new value to what is viewed, and other views of it are taken again where they are
    read later. Buffers and inputs that are written get their last value by a `copy_` at the end, so that callers see
    what they see with the original. `meta["inplace"]` remembers which calls wrote over their input.

    Raises CaptureError where a parameter is written, or where there is no plain form of the write.
    """
    if any(_is_write(node) for node in gm.graph.nodes):
        _Memory(gm).rewrite()


def _is_write(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable and node.target.namespace == "aten"


class _Memory:
    """What memory holds at the point of the graph that has been reached.

    source: what each node shares memory with; None for a tensor of its own, its *root*.
    version: how often the memory of a root was written.
    known: the node that has the value of a tensor or view at a version of its memory.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm, self.graph = gm, gm.graph
        self.source: dict[fx.Node, fx.Node | None] = {}
        self.version: dict[fx.Node, int] = {}
        self.known: dict[tuple[fx.Node, int], fx.Node] = {}

    def rewrite(self) -> None:
        """Go through the graph once."""
        for node in list(self.graph.nodes):
            writes = _is_write(node)
            self.source[node] = self._written(node) if writes else viewed(node)
            with self.graph.inserting_before(node):
                if node.op == "output":
                    self._finish(node)
                    return
                node.args = fx.map_arg(node.args, self.present)
                node.kwargs = fx.map_arg(node.kwargs, self.present)
            if writes:
                with self.graph.inserting_before(node.next):
                    self._write(node)
            else:
                self.known[node, self.version.get(self._root(node), 0)] = node

    def present(self, node: fx.Node) -> fx.Node:
        """The node that has what the memory of `node` holds now."""
        key = (node, self.version.get(self._root(node), 0))
        if key not in self.known:
            source = self.source[node]
            assert source is not None
            written = node.meta.get("inplace", False)  # its result is the very tensor that it wrote
            self.known[key] = self.present(source) if written else replayed(node, self.present(source))
        return self.known[key]

    def _root(self, node: fx.Node) -> fx.Node:
        while (source := self.source[node]) is not None:
            node = source
        return node

    def _written(self, node: fx.Node) -> fx.Node:
        """The argument that a call writes. Raises CaptureError where a graph cannot say it otherwise."""
        assert isinstance(node.target, OpOverload)
        formals = node.target._schema.arguments
        written = [item for item in formals if item.alias_info is not None and item.alias_info.is_write]
        if written != [formals[0]]:
            raise CaptureError(f"the forward writes into an argument of {describe(node)}: use its plain form")
        root = self._root(source_of(node))
        if root.op == "get_attr" and isinstance(attribute(self.gm, str(root.target)), nn.Parameter):
            raise CaptureError(
                f"the forward writes into the parameter `{root.target}` in {describe(node)}: change parameters outside "
                "the forward, or compute a new tensor from them"
            )
        return source_of(node)

    def _write(self, node: fx.Node) -> None:
        """Make the call a plain one, and note what the memory that it wrote holds now."""
        view = self.source[node]
        assert view is not None and isinstance(node.target, OpOverload)
        reshapes = torch.Tag.inplace_view in node.target.tags  # x.unsqueeze_(0) writes no memory
        value = _plain(node)
        if reshapes:
            node.meta["inplace"] = True
            version = self.version.get(self._root(node), 0)
            self.known[node, version] = self.known[view, version] = value
            return
        chain = [node]
        values = [value]
        while view is not None:
            chain.append(view)
            values.append(value)
            written, view = view, self.source[view]
            if view is not None and not written.meta.get("inplace"):
                if isinstance(view.meta["val"], (list, tuple)):  # a part of a split
                    view = self.source[view]
                    assert view is not None
                value = scattered(written, self.present(view), value)
        node.meta["inplace"] = True
        root = chain[-1]
        self.version[root] = self.version.get(root, 0) + 1
        self.known.update({(item, self.version[root]): held for item, held in zip(chain, values, strict=True)})

    def _finish(self, output: fx.Node) -> None:
        """Give buffers and inputs their last value, and results theirs."""
        handed: dict[fx.Node, fx.Node] = {}
        for root in self.version:
            if root.op in {"get_attr", "placeholder"}:
                handed[root] = call(root, aten.copy_.default, root, self.present(root))
        output.args = fx.map_arg(output.args, lambda node: handed.get(self._same(node)) or self.present(node))

    def _same(self, node: fx.Node) -> fx.Node:
        """The tensor that the node is the result of writing, or the node itself."""
        while node.meta.get("inplace"):
            source = self.source[node]
            assert source is not None
            node = source
        return node


def _plain(node: fx.Node) -> fx.Node:
    """The value that a call in place writes, by a plain call; the call itself becomes that one."""
    assert isinstance(node.target, OpOverload)
    name, overload = node.target._schema.name.split("::")[1].removesuffix("_"), node.target._overloadname
    found = getattr(getattr(aten, name, None), overload, None)
    if found is None or found._schema.is_mutable:
        raise CaptureError(
            f"the forward writes in place with {describe(node)}, which has no form that returns its result"
        )
    node.target = found
    kept = node.meta.setdefault("val", source_of(node).meta["val"])
    read = [source.meta.get("val") for source in node.all_input_nodes]
    if found is aten.copy.default and isinstance(read[-1], Tensor) and _alike(read[-1], kept):
        return node.all_input_nodes[-1]
    others = {value.dtype for value in read if isinstance(value, Tensor)} - {kept.dtype, torch.bool}
    if others and torch.Tag.pointwise in found.tags:  # a write keeps the type, a plain call may promote it
        return call(node, aten.to.dtype, node, kept.dtype)
    return node


def _alike(value: Tensor, other: Tensor) -> bool:
    """Whether one can stand for the other."""
    return (value.shape, value.dtype, value.device) == (other.shape, other.dtype, other.device)
