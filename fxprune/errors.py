"""Typed errors: each names the node, the op, the shape and the user's source line where it can, and what to do."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, fx

Registered = TypeVar("Registered")

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_NOT_USERS = (_TORCH, f"{Path(__file__).parent}{os.sep}")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)\n\s*(?P<code>[^\n]*)')


class FxpruneError(Exception):
    """Base of every error that fxprune raises for a mistake of its user."""


class CaptureError(FxpruneError):
    """The model cannot be traced to an ATen graph."""


class InputError(FxpruneError):
    """Example inputs do not fit the model: rank, size, dtype or device."""


class CalibrationError(FxpruneError):
    """Calibration data is empty, holds NaN or infinity, or does not fit the model."""


class BudgetError(FxpruneError):
    """A budget is out of range, or cannot be reached."""


class SolverError(FxpruneError):
    """No solver found the optimum of a convex program."""


class PlanError(FxpruneError):
    """A plan names unknown groups or units, breaks a block, or cannot be applied to a module."""


class SpecError(FxpruneError):
    """A model or data specification on the command line cannot be resolved."""


class WeightsError(FxpruneError):
    """A weights file does not match the model."""


class OutputError(FxpruneError):
    """A result cannot be written."""


class ResumeError(FxpruneError):
    """A run cannot go on from the state that an earlier one left: it is another run's, or damaged."""


class RewriteError(FxpruneError):
    """A pass met a graph that it cannot rewrite, or its postcondition does not hold."""


class VerificationError(FxpruneError):
    """The rewritten network does not compute what the oracle says it must."""


def registered(kind: str, name: str, registry: Mapping[str, Registered]) -> Registered:
    """What a registry holds under a name. Raises PlanError, with the names that there are, where it holds none."""
    if name not in registry:
        raise PlanError(f"{kind} {name!r} is not known; there are: {', '.join(registry)}")
    return registry[name]


def source_line(node: fx.Node) -> str:
    """The user's line behind `node` as `file:line: code`, or "" when the graph does not say."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    users = [frame for frame in frames if not frame[0].startswith(_TORCH)]
    if not users:
        return ""
    file, line, _, code = users[-1]
    return f"{file}:{line}: {code.strip()}"


def user_line(error: BaseException) -> str:
    """The innermost line of the traceback that is neither torch's nor ours: ` at file:line: code`, or ""."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_NOT_USERS)]
    return f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""


def shape_of(node: fx.Node) -> tuple[int | str, ...] | None:
    """The shape that the graph records for `node`; symbolic sizes as text; None where it is not a tensor."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape)


def describe(node: fx.Node) -> str:
    """One line that tells a user which node is meant: name, op, shape, source line."""
    shape, line = shape_of(node), source_line(node)
    text = f"`{node.name}` ({node.target if node.op == 'call_function' else node.op})"
    text += f" of shape ({', '.join(map(str, shape))})" if shape is not None else ""
    return text + (f" at {line}" if line else "")
