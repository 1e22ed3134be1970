"""Every mechanism: the groups that theory gives, and why the rest is held."""

from __future__ import annotations

import re

import pytest

import fxprune as fp
from tests.networks import EXAMPLES, build, inputs


def summary(coupling: fp.Coupling) -> str:
    """`name width/blocks` of every group."""
    return ", ".join(
        f"{group.name} {group.width}" + (f"/{len(group.blocks)}" if group.blocks else "") for group in coupling.groups
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_groups_are_those_of_theory(name: str) -> None:
    assert summary(fp.analyze(fp.capture(build(name), inputs(name)))) == EXAMPLES[name].groups


@pytest.mark.parametrize("name", [name for name, item in EXAMPLES.items() if item.heads is not None])
def test_groups_of_whole_heads_are_those_of_theory(name: str) -> None:
    assert summary(fp.analyze(fp.capture(build(name), inputs(name)), heads=True)) == EXAMPLES[name].heads


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_parameter_axis_shrinks_or_is_held_with_a_reason(name: str) -> None:
    gm = fp.capture(build(name), inputs(name))
    coupling = fp.analyze(gm)
    shrinking = {axis for group in coupling.groups for axis in group.axes}
    for param, tensor in gm.named_parameters():
        for dim, size in enumerate(tensor.shape):
            axis = fp.Axis(param, dim)
            assert size == 1 or (axis in shrinking) != (axis in coupling.held), f"{axis} is in neither or in both"
            assert axis not in coupling.held or len(coupling.held[axis]) > 10


@pytest.mark.parametrize("name", [name for name, item in EXAMPLES.items() if item.held])
def test_what_is_held_says_why(name: str) -> None:
    held = {str(axis): reason for axis, reason in fp.analyze(fp.capture(build(name), inputs(name))).held.items()}
    for axis, pattern in EXAMPLES[name].held.items():
        assert axis in held
        assert re.search(pattern, held[axis]), held[axis]
