"""Values: budgets, plans, verifications."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fxprune as fp

names = st.text(min_size=1, max_size=8)


@given(
    st.dictionaries(names, st.lists(st.integers(0, 99), max_size=5)),
    st.lists(st.tuples(st.lists(st.integers(1, 9), max_size=4), st.just("float32"))),
)
def test_plan_json_round_trip(kept: dict[str, list[int]], inputs: list[tuple[list[int], str]]) -> None:
    plan = fp.Plan(kept, inputs)
    again = fp.Plan.from_json(plan.to_json())
    assert again == plan
    assert again.inputs == plan.inputs


@pytest.mark.parametrize("widens", [False, True])
def test_plan_json_says_whether_units_repeat(widens: bool) -> None:
    plan = fp.Plan({"a": [0, 2, 2]}, widens=widens)
    assert f'"widens": {str(widens).lower()}' in plan.to_json()
    again = fp.Plan.from_json(plan.to_json())
    assert (again, again.widens, again.kept["a"]) == (plan, widens, (0, 2, 2))


def test_a_plan_of_before_widening_does_not_widen() -> None:
    assert not fp.Plan.from_json('{"version": 1, "heads": true, "inputs": [], "kept": {"a": [0]}}').widens


def test_whether_a_plan_repeats_units_is_what_it_names() -> None:
    assert fp.Plan({"a": [0, 1], "b": [1, 1]}, widens=True).repeats
    assert not fp.Plan({"a": [0, 1], "b": [0, 1]}, widens=True).repeats


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "kept": {"a": 3}, "inputs": []}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(fp.PlanError, match="not a plan written by Plan.to_json|must be whole numbers"):
        fp.Plan.from_json(text)


def test_another_version_is_refused() -> None:
    with pytest.raises(fp.PlanError, match="plan version 7"):
        fp.Plan.from_json('{"version": 7}')


def test_verification_of_nan_is_not_ok() -> None:
    assert not fp.Verification(float("nan"), 1e-8, "", ()).ok
    assert fp.Verification(1e-9, 1e-8, "", ()).ok


@pytest.mark.parametrize("kept", [{"a": [0.7]}, {"a": "048"}, {"a": ["b"]}, {"a": 3}, None])
def test_units_must_be_whole_numbers(kept: Any) -> None:
    with pytest.raises(fp.PlanError, match="must be whole numbers|is no mapping"):
        fp.Plan(kept)


def test_units_come_sorted() -> None:
    assert fp.Plan({"a": [3, 1]}).kept == {"a": (1, 3)}
