"""Rows that keep equally many, as blocks of units."""

from __future__ import annotations

import pytest
import torch

from fxprune.coupling.blocks import Family, solve
from fxprune.types import Field

ANYWHERE = [0] * 20  # all units on the same parameter axes


def solved(*layouts: list[list[int]], axes: list[int] = ANYWHERE) -> tuple[tuple[Family, ...], list[list[list[int]]]]:
    """Families, and the rows that blocks cannot make equal."""
    solution = solve([Field(torch.tensor(layout), 1, True) for layout in layouts], axes)
    return solution.families, [rows.tolist() for rows in solution.crossing]


def test_rows_become_blocks() -> None:
    assert solved([[1, 2], [3, 4]]) == ((((1, 2), (3, 4)),), [])


def test_finer_blocks_imply_coarser_ones() -> None:
    quarters = ((1, 2), (3, 4), (5, 6), (7, 8))
    assert solved([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2], [3, 4], [5, 6], [7, 8]]) == ((quarters,), [])


def test_two_families_become_one_where_rows_of_both_must_be_equal() -> None:
    """Queries of two heads, values of two heads, and both in the rows of one layer."""
    families, crossing = solved([[1, 2], [3, 4]], [[5, 6], [7, 8]], [[1, 2, 3, 4], [5, 6, 7, 8]])
    assert [sorted(family) for family in families] == [[(1, 2), (3, 4), (5, 6), (7, 8)]]
    assert crossing == []


def test_rows_that_are_the_same_units_say_nothing() -> None:
    assert solved([[1, 2, 3], [1, 2, 3]]) == ((), [])


def test_what_lies_on_other_axes_is_a_family_of_its_own() -> None:
    """Both rows have two units of one layer and one of another, which makes up for none of the first."""
    axes = [0, 1, 1, 2, 1, 1, 2]
    families, crossing = solved([[1, 2, 3], [4, 5, 6]], axes=axes)
    assert set(families) == {((1, 2), (4, 5)), ((3,), (6,))}
    assert crossing == []


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 1], [2, 3]],  # a permanent position beside a row without one
        [[1, 2, 3], [3, 4, 5]],  # a unit in two rows
        [[1, 1, 2], [3, 4, 5]],  # one row of two units, one of three
    ],
)
def test_rows_that_blocks_cannot_make_equal(rows: list[list[int]]) -> None:
    assert solved(rows) == ((), [rows])


def test_blocks_that_cross_cannot_be_kept_equal() -> None:
    families, crossing = solved([[1, 2], [3, 4]], [[1, 3, 5], [2, 4, 6]])
    assert families == (((1, 2), (3, 4)),)
    assert crossing == [[[1, 3, 5], [2, 4, 6]]]
