"""How long work tells how far it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

Counted = Callable[[int, int], None]  # told of one stage: steps done, all steps
Measured = Callable[[int, int, float], None]  # and what error is left


class Progress(Protocol):
    """Told how far a stage is."""

    def __call__(self, stage: str, done: int, total: int, error: float | None = None, /) -> None:
        """`done` of `total` steps of `stage` are done; `error`: what is left to correct, as far as it is known."""


def silent(stage: str, done: int, total: int, error: float | None = None, /) -> None:
    """The progress that tells nobody."""


def unheard(done: int, total: int, error: float, /) -> None:
    """The report of one stage that tells nobody."""


def heard_by(listener: Callable[..., Any] | None) -> Progress:
    """A progress that calls `listener(stage, done, total, error)`, without the error where it takes but three."""
    if listener is None:
        return silent
    try:
        inspect.signature(listener).bind("", 0, 0, None)
    except TypeError:
        return lambda stage, done, total, error=None, /: listener(stage, done, total)
    except ValueError:  # some built-in callables have no signature
        pass
    return lambda stage, done, total, error=None, /: listener(stage, done, total, error)
