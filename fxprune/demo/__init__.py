"""The demo: a network of this project's own, trained on scikit-learn's handwritten digits, pruned to half its FLOPs."""

from fxprune.demo.digits import load
from fxprune.demo.network import trained
from fxprune.demo.run import Outcome, run

__all__ = ["Outcome", "load", "run", "trained"]
