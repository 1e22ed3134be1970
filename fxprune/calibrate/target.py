"""What a contraction of the pruned network should put out, so that the network after it sees what the dense one saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.calibrate.contraction import Contraction
from fxprune.calibrate.evaluate import attribute
from fxprune.calibrate.homes import batch_norm_after, gain

ADD = torch.ops.aten.add.Tensor


@dataclass(frozen=True)
class Target:
    """The dense output of a contraction at the channels that stay, without the bias that the pruned one adds; where a
    shortcut is added right behind it (or behind its BatchNorm), with what the shortcut has lost, so that the sum comes
    out right.

    item: the contraction. kept: positions of the channels that stay, None for all.
    shortcut: the node that is added, if any. gain: of the BatchNorm in between, [channels].
    """

    item: Contraction
    kept: Tensor | None
    shortcut: str | None
    gain: Tensor | None

    @property
    def dense(self) -> tuple[str, ...]:
        """The nodes whose dense values are needed."""
        return (self.item.name, *((self.shortcut,) if self.shortcut else ()))

    @property
    def pruned(self) -> tuple[str, ...]:
        """The nodes whose pruned values are needed."""
        return (self.item.source, *(name for name in (self.item.bias, self.shortcut) if name))

    def rows(self, dense: Mapping[str, Any], pruned: Mapping[str, Any], index: Tensor) -> Tensor:
        """Target rows at `index`: [systems, rows, outputs]."""
        target = self._kept(self.item.channel_rows(dense[self.item.name], index))
        if self.shortcut is not None:
            wanted = self._kept(self.item.channel_rows(dense[self.shortcut], index))
            lost = wanted - self.item.channel_rows(pruned[self.shortcut], index)
            target = target + (lost if self.gain is None else lost * self._inverse_gain())
        if self.item.bias is not None:
            target = target - pruned[self.item.bias]
        return target.reshape(len(target), self.item.systems, -1).movedim(1, 0)

    def _kept(self, rows: Tensor) -> Tensor:
        return rows if self.kept is None else rows[:, self.kept]

    def _inverse_gain(self) -> Tensor:
        """1 / gain; 0 for a channel that the BatchNorm all but switches off, which cannot correct anything."""
        assert self.gain is not None
        usable = self.gain.abs() > 1e-2 * self.gain.abs().max()
        return torch.where(usable, 1 / self.gain, torch.zeros_like(self.gain))


def target_of(gm: fx.GraphModule, item: Contraction, unsolved: set[str], kept: Tensor | None) -> Target:
    """The target of a contraction of the pruned graph `gm`.

    unsolved: the contractions that are corrected after this one; a shortcut that depends on one of them, or on this
        one, is left to the one that comes last.
    """
    node = next(node for node in gm.graph.nodes if node.name == item.name)
    norm = batch_norm_after(node)
    shortcut = _shortcut(norm or node, unsolved | {item.name})
    return Target(item, kept, shortcut, None if norm is None or shortcut is None else _gain(gm, norm))


def _shortcut(node: fx.Node, unsolved: set[str]) -> str | None:
    """The other term of the addition that alone reads `node`, if it is known before it."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if user.target is not ADD or user.kwargs or len(user.args) != 2:
        return None
    others = [argument for argument in user.args if isinstance(argument, fx.Node) and argument is not node]
    if len(others) != 1 or not _same_shape(node, others[0]) or _depends_on(others[0], unsolved):
        return None
    return others[0].name


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    shapes = [getattr(node.meta.get("val"), "shape", None) for node in (a, b)]
    return None not in shapes and str(shapes[0]) == str(shapes[1])


def _depends_on(node: fx.Node, names: set[str]) -> bool:
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current.name in names:
            return True
        if current not in seen:
            seen.add(current)
            stack += current.all_input_nodes
    return False


def _gain(gm: fx.GraphModule, norm: fx.Node) -> Tensor:
    """What a BatchNorm in evaluation multiplies each channel by."""
    weight, variance = norm.args[1], norm.args[4]
    assert isinstance(variance, fx.Node)
    eps = norm.args[7]
    assert isinstance(eps, float)
    gamma = attribute(gm, str(weight.target)) if isinstance(weight, fx.Node) else None
    return gain(gamma, attribute(gm, str(variance.target)), eps)
