"""fxprune makes trained neural networks smaller and faster without retraining, as passes over torch.fx graphs."""

from fxprune.api import Result, pipeline, prune
from fxprune.budget import Budget
from fxprune.capture import capture
from fxprune.cost import Cost, cost
from fxprune.coupling import analyze
from fxprune.errors import FxpruneError, PlanError
from fxprune.exported import prune_exported, shrink
from fxprune.latency import Timing
from fxprune.passes.verify import verify
from fxprune.precrop import precrop
from fxprune.report import Report
from fxprune.types import Axis, ChannelGroup, Coupling, Field, Plan, Slice, Verification
from fxprune.version import VERSION

__version__ = VERSION

__all__ = [
    "Axis",
    "Budget",
    "ChannelGroup",
    "Cost",
    "Coupling",
    "Field",
    "FxpruneError",
    "Plan",
    "PlanError",
    "Report",
    "Result",
    "Slice",
    "Timing",
    "Verification",
    "analyze",
    "capture",
    "cost",
    "pipeline",
    "precrop",
    "prune",
    "prune_exported",
    "shrink",
    "verify",
]
