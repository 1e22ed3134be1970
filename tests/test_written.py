"""Options are written as a person would: without those that are as by default."""

from __future__ import annotations

import fxprune as fp
from fxprune.passes.choose import Choose


def test_only_what_is_not_as_by_default_is_told() -> None:
    assert repr(Choose(fp.Budget(flops=0.5), allocation="dynamic")) == (
        "Choose(budget=Budget(flops=0.5), allocation='dynamic')"
    )
    assert repr(Choose(fp.Budget(flops=0.5), seed=3, timing=fp.Timing(batch=2))).endswith(
        "seed=3, timing=Timing(batch=2, compiled=False, table=None))"
    )
