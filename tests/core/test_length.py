"""The taste for length."""

import math

import numpy as np
import pytest
from scipy import stats

from scpo_ray.core.length import length_correlation, longer_is_chosen, matched_length_mask


def test_correlation_by_hand_and_scipy():
    assert length_correlation(np.array([1.0, -2.0, 5.0]), np.array([3, -4, 9])) == pytest.approx(1.0)
    assert length_correlation(np.array([1.0, 2.0]), np.array([-3, -4])) == pytest.approx(-1.0)
    # Both ways round: margins 1, 2, -1, -2 have ranks 3, 4, 2, 1; differences 2, 1, -2, -1 ranks 4, 3, 1, 2; 1 - 6*4/(4*15)
    assert length_correlation(np.array([1.0, 2.0]), np.array([2, 1])) == pytest.approx(0.6)
    random = np.random.default_rng(0)
    margins, differences = random.normal(size=50), random.integers(-20, 20, 50)
    both = [np.concatenate([values, -values]) for values in (margins, differences)]
    assert length_correlation(margins, differences) == pytest.approx(stats.spearmanr(*both).statistic)


def test_which_response_was_chosen_does_not_matter():
    margins, differences = np.array([1.0, -2.0, 0.5, 3.0]), np.array([4, 1, -2, 7])
    turned = np.array([1, -1, -1, 1])
    assert length_correlation(margins * turned, differences * turned) == pytest.approx(
        length_correlation(margins, differences)
    )


def test_correlation_where_there_is_none_to_speak_of():
    assert math.isnan(length_correlation(np.zeros(3), np.array([1, 2, 3])))
    assert math.isnan(length_correlation(np.array([1.0, 2.0]), np.array([0, 0])))
    assert math.isnan(length_correlation(np.ones(0), np.ones(0, dtype=int)))
    with pytest.raises(ValueError, match="1 of 2 margins are NaN"):
        length_correlation(np.array([1.0, np.nan]), np.array([1, 2]))
    with pytest.raises(ValueError, match="2 margins, 1 length differences"):
        length_correlation(np.ones(2), np.ones(1, dtype=int))


def test_matched_pairs_and_the_longer_one():
    chosen, rejected = np.array([10, 10, 10, 20]), np.array([9, 8, 10, 10])
    assert matched_length_mask(chosen_lengths=chosen, rejected_lengths=rejected).tolist() == [True, False, True, False]
    assert matched_length_mask(chosen_lengths=chosen, rejected_lengths=rejected, tolerance=0.5).all()
    assert longer_is_chosen(chosen_lengths=chosen, rejected_lengths=rejected).tolist() == [1.0, 1.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="equal shapes"):
        matched_length_mask(chosen_lengths=chosen, rejected_lengths=rejected[:1])
