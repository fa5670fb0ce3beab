"""Accuracy on pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.core.accuracy import pair_correctness
from tests import reference

small = st.integers(-2, 2).map(float)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(small, small), max_size=20))
def test_pair_correctness_matches_reference(rows):
    chosen, rejected = [plus for plus, _ in rows], [minus for _, minus in rows]
    found = pair_correctness(chosen_rewards=np.array(chosen), rejected_rewards=np.array(rejected))
    assert found.tolist() == reference.correctness(chosen, rejected)


def test_pair_correctness_by_hand():
    found = pair_correctness(chosen_rewards=np.array([2.0, 1.0, -1.0]), rejected_rewards=np.array([1.0, 1.0, 3.0]))
    assert found.tolist() == [1.0, 0.5, 0.0]


def test_pair_correctness_refuses_nan_and_unequal_shapes():
    with pytest.raises(ValueError, match="2 pairs have a NaN reward"):
        pair_correctness(chosen_rewards=np.array([np.nan, 0, 1]), rejected_rewards=np.array([0, 0, np.nan]))
    with pytest.raises(ValueError, match="expected equal shapes"):
        pair_correctness(chosen_rewards=np.zeros(3), rejected_rewards=np.zeros(1))
