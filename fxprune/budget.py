"""The budget: how small a network must become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from fxprune.errors import BudgetError

LIMITED = ("flops", "params", "memory", "latency")


@dataclass(frozen=True, repr=False)
class Budget:
    """How small the result must be, or how much it may err: all that is given holds.

    flops: as `torch.utils.flop_counter` counts them on the captured graph at batch 1.
    params: elements of `model.parameters()`.
    memory: bytes of the activations of one input: of all that is computed and is no view.
    latency: nanoseconds of a forward, measured as `Timing` says.
        Each is a share (0, 1] of the original or an absolute number above 1.
    max_error: the largest squared error of the network's outputs on held-out calibration images, relative to their
        variance: 0.05 is 5 %. The result is as small as possible with at most this error.

    Raises BudgetError where nothing is given, or a number is out of range.
    """

    flops: float | None = None
    params: float | None = None
    memory: float | None = None
    latency: float | None = None
    max_error: float | None = None

    def __repr__(self) -> str:
        """What was given, as it would be written."""
        given = {**self.limits, **({} if self.max_error is None else {"max_error": self.max_error})}
        return f"Budget({', '.join(f'{name}={limit!r}' for name, limit in given.items())})"

    def __post_init__(self) -> None:
        if not self.limits and self.max_error is None:
            raise BudgetError("an empty budget: give at least one of flops=, params=, memory=, latency= and max_error=")
        for name, limit in self.limits.items():
            if not _is_positive(limit):
                raise BudgetError(
                    f"{name}={limit!r}: a limit is a share in (0, 1] of the original, or an absolute number above 1"
                )
        if self.max_error is not None and not _is_positive(self.max_error):
            raise BudgetError(
                f"max_error={self.max_error!r}: an error is a number above 0, relative to the variance of the outputs "
                "(0.05 is 5 %)"
            )

    @property
    def limits(self) -> dict[str, float]:
        """The limits on costs that are set, by the name of the cost."""
        return {name: limit for name in LIMITED if (limit := getattr(self, name)) is not None}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The costs that are worth telling: FLOPs, parameters, and what else is limited."""
        return tuple(dict.fromkeys(("flops", "params", *self.limits)))

    def absolute(self, dense: Mapping[str, float]) -> dict[str, float]:
        """The limits on costs as absolute numbers, given the costs of the original."""
        return {name: limit * dense[name] if limit <= 1 else limit for name, limit in self.limits.items()}


def require_budget(budget: Any, example: str) -> None:
    """Raise BudgetError for what is no Budget."""
    if not isinstance(budget, Budget):
        raise BudgetError(f"budget must be a Budget, e.g. fxprune.Budget({example}), not {type(budget).__name__}")


def _is_positive(number: Any) -> bool:
    """Whether `number` is a real number above 0, and neither a bool, infinite nor NaN."""
    return isinstance(number, Real) and not isinstance(number, bool) and 0 < float(number) < math.inf
