"""The ruler: agreement, filter and weight."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.core.agreement import agreement, disagreement_mask, preference_weight
from tests import reference

rewards = st.one_of(st.floats(-20, 20), st.sampled_from([-1e4, -400.0, 0.0, 400.0, 1e4]))
pairs = st.lists(st.tuples(rewards, rewards), min_size=1, max_size=20)


@settings(max_examples=100, deadline=None)
@given(pairs, st.floats(0.1, 5))
def test_agreement_and_weight_match_reference(rows, temperature):
    chosen, rejected = np.array(rows).T
    probability = agreement(chosen_rewards=chosen, rejected_rewards=rejected)
    np.testing.assert_allclose(probability, reference.agreement(*chosen_rejected(rows)), rtol=1e-12, atol=0)
    weight = preference_weight(chosen_rewards=chosen, rejected_rewards=rejected, temperature=temperature)
    expected = reference.preference_weights(*chosen_rejected(rows), temperature)
    np.testing.assert_allclose(weight, expected, rtol=1e-11, atol=1e-300)
    assert probability.dtype == weight.dtype == np.float64
    assert ((probability >= 0) & (probability <= 1) & (weight >= 0) & (weight <= 1)).all()
    assert (weight[chosen >= rejected] == 1).all()
    swapped = agreement(chosen_rewards=rejected, rejected_rewards=chosen)
    np.testing.assert_allclose(probability + swapped, 1, rtol=1e-12)


def chosen_rejected(rows):
    return [plus for plus, _ in rows], [minus for _, minus in rows]


def test_agreement_by_hand():
    chosen, rejected = np.array([0.0, math.log(3), -math.log(3), 2.5]), np.array([0.0, 0.0, 0.0, 2.5])
    for form in ("sigmoid", "exp_ratio"):
        found = agreement(chosen_rewards=chosen, rejected_rewards=rejected, form=form)
        np.testing.assert_allclose(found, [0.5, 0.75, 0.25, 0.5], rtol=1e-6)


def test_published_form_breaks_where_exp_leaves_float32():
    def published(plus, minus):
        return agreement(chosen_rewards=np.array([plus]), rejected_rewards=np.array([minus]), form="exp_ratio").item()

    assert published(88.0, 87.0) == pytest.approx(reference.sigmoid(1), rel=1e-4)
    assert math.isnan(published(89.0, 88.0))
    assert math.isnan(published(-104.0, -104.0))
    assert published(0.0, 89.0) == 0.0
    exact = agreement(chosen_rewards=np.array([89.0]), rejected_rewards=np.array([88.0])).item()
    assert exact == pytest.approx(reference.sigmoid(1), rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=20))
def test_published_form_is_float32_arithmetic(rows):
    chosen, rejected = np.array(rows).T
    found = agreement(chosen_rewards=chosen, rejected_rewards=rejected, form="exp_ratio")
    np.testing.assert_allclose(found, reference.agreement(*chosen_rejected(rows)), rtol=1e-5)
    assert (found == found.astype(np.float32)).all()


def test_float32_rewards_are_subtracted_in_float64():
    chosen, rejected = np.array([1e4], dtype=np.float32), np.array([1e-5], dtype=np.float32)
    weight = preference_weight(chosen_rewards=rejected, rejected_rewards=chosen, temperature=1e4)
    assert weight.item() == pytest.approx(math.exp((float(rejected[0]) - 1e4) / 1e4), rel=1e-14)


def test_filter_is_strict_and_drops_nan():
    probabilities = np.array([0.69999, 0.7, 0.70001, np.nan, 0.0, 1.0])
    assert disagreement_mask(agreement=probabilities, threshold=0.7).tolist() == [
        True,
        False,
        False,
        False,
        True,
        False,
    ]


def test_preference_weight_by_hand():
    weight = preference_weight(
        chosen_rewards=np.array([0.0, 0.0, 5.0, 1.0]), rejected_rewards=np.array([1.1, 2.2, 0.0, 1.0]), temperature=1.1
    )
    np.testing.assert_allclose(weight, [math.exp(-1), math.exp(-2), 1, 1], rtol=1e-14)


def test_wrong_input_is_refused():
    two, one = np.zeros(2), np.zeros(1)
    with pytest.raises(ValueError, match=r"expected equal shapes, got chosen \(2,\), rejected \(1,\)"):
        agreement(chosen_rewards=two, rejected_rewards=one)
    with pytest.raises(ValueError, match="expected equal shapes"):
        preference_weight(chosen_rewards=two, rejected_rewards=one, temperature=1.0)
    for bad in (np.nan, np.inf, -np.inf):
        for form in ("sigmoid", "exp_ratio"):
            with pytest.raises(ValueError, match=r"pair 1 of 2 has rewards .* 1 pairs are not finite"):
                agreement(chosen_rewards=two, rejected_rewards=np.array([0.0, bad]), form=form)
        with pytest.raises(ValueError, match="not finite"):
            preference_weight(chosen_rewards=np.array([0.0, bad]), rejected_rewards=two, temperature=1.0)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="weight temperature must be positive"):
            preference_weight(chosen_rewards=two, rejected_rewards=two, temperature=temperature)
