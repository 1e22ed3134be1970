"""A tensor as the analysis sees it: a shape, and fields that do not vary along most of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxprune.calls import Shape
from fxprune.types import Field

Fields = tuple[Field, ...]


@dataclass(frozen=True)
class Operand:
    """The shape of a tensor and the fields on it."""

    shape: Shape
    fields: Fields

    def on(self, axis: int) -> Field | None:
        """The field that shrinks `axis`."""
        return next((item for item in self.fields if item.axis == axis), None)


def support(ids: Tensor) -> tuple[int, ...]:
    """The axes along which ids vary."""
    return tuple(dim for dim, size in enumerate(ids.shape) if size > 1)


def broadcast_shape(shapes: Iterable[Sequence[int]]) -> Shape:
    """The shape that operands of these shapes broadcast to."""
    return tuple(torch.broadcast_shapes(*shapes))


def laid_along(operand: Operand, axis: int, rank: int) -> Operand:
    """A one-dimensional operand laid along `axis` of a tensor of `rank` dimensions."""
    view = tuple(-1 if dim == axis else 1 for dim in range(rank))
    shape = tuple(operand.shape[0] if dim == axis else 1 for dim in range(rank))
    return Operand(shape, tuple(replace(item, ids=item.ids.reshape(view), axis=axis) for item in operand.fields))


def with_rank(operand: Operand, rank: int) -> Operand:
    """The operand with leading dimensions of size 1 up to `rank`."""
    extra = rank - len(operand.shape)
    if not extra:
        return operand
    fields = tuple(replace(item, ids=item.ids[(None,) * extra], axis=item.axis + extra) for item in operand.fields)
    return Operand((1,) * extra + operand.shape, fields)
