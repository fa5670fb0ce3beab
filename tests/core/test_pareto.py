"""Fronts by hand and against a slow reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scpo_ray.core.pareto import choose, pareto_mask

POINTS = np.array([[0.6, 0.9], [0.7, 0.7], [0.6, 0.8], [0.9, 0.2], [0.7, 0.7]])


def reference(values: np.ndarray) -> list[bool]:
    def beats(other: np.ndarray, point: np.ndarray) -> bool:
        return all(a >= b for a, b in zip(other, point, strict=True)) and any(
            a > b for a, b in zip(other, point, strict=True)
        )

    return [not any(beats(other, point) for other in values) for point in values]


def test_the_front_by_hand():
    assert pareto_mask(POINTS).tolist() == [True, True, False, True, True]


@given(arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.sampled_from([0.0, 0.5, 1.0])))
def test_the_front_of_any_points(values):
    assert pareto_mask(values).tolist() == reference(values)


def test_criteria_by_hand():
    assert choose(POINTS, criterion="mean") == 0  # 0.75 against 0.7, 0.55
    assert choose(POINTS, criterion="first") == 3
    # Gains over (0.55, 0.65): smallest 0.05, 0.05, -, -0.45: the tie goes to the higher mean.
    assert choose(POINTS, criterion="maximin", baseline=np.array([0.55, 0.65])) == 0
    assert choose(POINTS, criterion="maximin", baseline=np.array([0.55, 0.5])) == 1


def test_equal_points_give_the_first_and_ties_go_to_the_next_objective():
    assert choose(np.array([[0.5], [0.5]]), criterion="mean") == 0
    assert choose(np.array([[0.5, 0.1], [0.5, 0.3]]), criterion="first") == 1


def test_what_cannot_be_chosen_from_is_refused():
    with pytest.raises(ValueError, match="no point"):
        choose(np.empty((0, 2)), criterion="mean")
    with pytest.raises(ValueError, match="finite"):
        pareto_mask(np.array([[0.5, np.nan]]))
    with pytest.raises(ValueError, match="maximin needs a baseline"):
        choose(POINTS, criterion="maximin")
