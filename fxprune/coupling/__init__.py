"""Which channels must go together, and which cannot go: channel fields on an ATen graph."""

from fxprune.coupling.groups import analyze

__all__ = ["analyze"]
