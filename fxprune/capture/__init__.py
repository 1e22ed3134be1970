"""Capture: a module, a symbolic_trace GraphModule or an exported program becomes one ATen graph."""

from fxprune.capture.example import double_batch_of_one, evaluation
from fxprune.capture.record import META, Capture, HandedOn, capture_info, last_capture
from fxprune.capture.trace import capture

__all__ = [
    "META",
    "Capture",
    "HandedOn",
    "capture",
    "capture_info",
    "double_batch_of_one",
    "evaluation",
    "last_capture",
]
