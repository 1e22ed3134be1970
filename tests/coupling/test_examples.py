"""Every mechanism: the groups that theory gives, and why the rest is held."""

from __future__ import annotations

import re

import pytest

import fxprune as fp
from tests.networks import EXAMPLES, captured


def summary(coupling: fp.Coupling) -> str:
    """`name width/blocks` of every group."""
    return ", ".join(
        f"{group.name} {group.width}" + (f"/{len(group.blocks)}" if group.blocks else "") for group in coupling.groups
    )


@pytest.fixture(scope="module", params=EXAMPLES)
def name(request: pytest.FixtureRequest) -> str:
    """Each network in turn; the tests of one follow each other, so that they share its graph."""
    return str(request.param)


def test_groups_are_those_of_theory(name: str) -> None:
    example = EXAMPLES[name]
    assert summary(fp.analyze(captured(name))) == example.groups
    if example.heads is not None:
        assert summary(fp.analyze(captured(name), heads=True)) == example.heads


def test_every_parameter_axis_shrinks_or_is_held_with_its_reason(name: str) -> None:
    gm = captured(name)
    coupling = fp.analyze(gm)
    shrinking = {axis for group in coupling.groups for axis in group.axes}
    for param, tensor in gm.named_parameters():
        for dim, size in enumerate(tensor.shape):
            axis = fp.Axis(param, dim)
            assert size == 1 or (axis in shrinking) != (axis in coupling.held), f"{axis} is in neither or in both"
            assert axis not in coupling.held or len(coupling.held[axis]) > 10
    held = {str(axis): reason for axis, reason in coupling.held.items()}
    for text, pattern in EXAMPLES[name].held.items():
        assert re.search(pattern, held[text]), held[text]
