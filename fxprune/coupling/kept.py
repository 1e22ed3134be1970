"""What a plan leaves of each tensor: sizes and elements, as the fields predict them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxprune.calls import concrete_shape
from fxprune.errors import PlanError, describe
from fxprune.types import Coupling, Field, Plan


@dataclass(frozen=True)
class Kept:
    """The prediction of a plan for every tensor of a graph.

    coupling: of the graph before removal.
    mask: which ids stay, from `Coupling.mask`.
    """

    coupling: Coupling
    mask: Tensor

    @staticmethod
    def under(coupling: Coupling, plan: Plan) -> Kept:
        """The prediction for `plan`."""
        return Kept(coupling, coupling.mask(plan))

    def positions(self, node: fx.Node, axis: int) -> Tensor | None:
        """Which positions of `axis` of the node's value stay: bool, of the first row; None where the axis is whole."""
        item = _on_axis(self.coupling.fields.get(node.name, ()), axis)
        if item is None:
            return None
        rows = _rows(self.mask[item.ids], axis)
        counts = rows.sum(-1)
        if int(counts.min()) != int(counts.max()):
            raise PlanError(f"rows of {describe(node)} would keep {int(counts.min())} to {int(counts.max())} positions")
        return rows[0]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of the node's value after removal, symbolic sizes as on the example."""
        sizes = list(concrete_shape(node))
        for axis in range(len(sizes)):
            stays = self.positions(node, axis)
            if stays is not None:
                sizes[axis] = int(stays.sum())
        return tuple(sizes)

    def count(self, node: fx.Node, axis: int, start: int, stop: int) -> int:
        """How many of the positions start to stop of `axis` stay."""
        stays = self.positions(node, axis)
        return max(0, stop - start) if stays is None else int(stays[start:stop].sum())

    def stays(self, fields: Sequence[Field], rank: int) -> Tensor:
        """Which elements of a tensor of `rank` dimensions stay: bool, broadcastable to it."""
        stays = torch.ones((1,) * rank, dtype=torch.bool)
        for item in fields:
            stays = stays & self.mask[item.ids]
        return stays

    def cut(self, tensor: Tensor, fields: Sequence[Field]) -> Tensor:
        """A copy of a tensor without the elements that leave."""
        stays = self.stays(fields, tensor.ndim)
        shape = list(tensor.shape)
        for item in fields:
            shape[item.axis] = int(_rows(self.mask[item.ids], item.axis)[0].sum())
        if bool(stays.all()):
            return tensor.detach().clone()
        return tensor.detach()[stays.expand(tensor.shape).to(tensor.device)].reshape(shape)


def _rows(stays: Tensor, axis: int) -> Tensor:
    lines = stays.movedim(axis, -1)
    return lines.reshape(-1, lines.shape[-1])


def _on_axis(fields: Sequence[Field], axis: int) -> Field | None:
    return next((item for item in fields if item.axis == axis), None)
