"""Seeded: the same numbers inside every time, and outside the caller's own as if nothing had been drawn."""

from __future__ import annotations

import torch

from fxprune.randomness import seeded


def test_numbers_repeat_inside_and_go_on_outside() -> None:
    torch.manual_seed(3)
    alone = torch.rand(4)
    torch.manual_seed(3)
    first = torch.rand(2)
    drawn = []
    for seed in (0, 0, 1):
        with seeded(seed):
            drawn.append(torch.rand(5))
    assert torch.equal(torch.cat([first, torch.rand(2)]), alone)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
