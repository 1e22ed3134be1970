"""Latency: how long a network takes, as a function of its widths, from times that were measured on this machine."""

from fxprune.latency.clock import Clock
from fxprune.latency.roofline import Latencies, Roofline, Sample
from fxprune.latency.timing import Timing

__all__ = ["Clock", "Latencies", "Roofline", "Sample", "Timing"]
