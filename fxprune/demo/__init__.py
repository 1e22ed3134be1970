"""The demo: a network of this project's own, trained on scikit-learn's handwritten digits, pruned to half its FLOPs."""

from fxprune.demo.run import Outcome, run

__all__ = ["Outcome", "run"]
