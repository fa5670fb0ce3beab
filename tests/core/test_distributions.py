"""Distributions over options and their distance."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.core.distributions import (
    fit_option_temperature,
    jensen_shannon_distance,
    option_probabilities,
)


def slow_distance(p: list[float], q: list[float]) -> float:
    """Square root of the mean of the two Kullback-Leibler divergences to the middle, in bits."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        middle = (a + b) / 2
        total += 0.5 * sum(x * math.log2(x / middle) for x in (a, b) if x > 0)
    return math.sqrt(max(total, 0.0))


def normalised(masses: list[float]) -> np.ndarray:
    return np.array(masses) / sum(masses)


masses = st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0]), min_size=2, max_size=5).filter(lambda m: sum(m) > 0)


@settings(max_examples=100, deadline=None)
@given(masses, st.data())
def test_distance_matches_reference_with_zero_mass(first, data):
    second = data.draw(st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=len(first), max_size=len(first)))
    if not sum(second):
        return
    p, q = normalised(first), normalised(second)
    found = jensen_shannon_distance(p, q)
    assert found == pytest.approx(slow_distance(p.tolist(), q.tolist()), abs=1e-7)
    assert found == jensen_shannon_distance(q, p) or math.isclose(found, jensen_shannon_distance(q, p), abs_tol=1e-9)
    assert 0.0 <= found <= 1.0


def test_distance_by_hand():
    assert jensen_shannon_distance(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0
    assert jensen_shannon_distance(np.array([0.3, 0.7]), np.array([0.3, 0.7])) == 0.0
    # (1, 0) against (½, ½): middle (¾, ¼); ½ log2(4/3) + ½ (½ log2(2/3) + ½ log2 2)
    expected = 0.5 * math.log2(4 / 3) + 0.5 * (0.5 * math.log2(2 / 3) + 0.5)
    assert jensen_shannon_distance(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(math.sqrt(expected))


@pytest.mark.parametrize("broken", [[np.nan, 1.0], [0.0, 0.0], [-0.1, 1.1], [0.5, 0.6], [np.inf, 0.0]], ids=str)
def test_what_is_no_distribution_is_an_error_and_never_a_perfect_score(broken):
    with pytest.raises(ValueError, match="not a distribution"):
        jensen_shannon_distance(np.array(broken), np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="not a distribution"):
        jensen_shannon_distance(np.array([0.5, 0.5]), np.array(broken))
    with pytest.raises(ValueError, match="equal shapes"):
        jensen_shannon_distance(np.array([1.0]), np.array([0.5, 0.5]))


def test_probabilities_by_hand_and_without_overflow():
    assert option_probabilities(np.array([math.log(3), 0.0]), temperature=1).tolist() == pytest.approx([0.75, 0.25])
    assert option_probabilities(np.array([math.log(9), 0.0]), temperature=2).tolist() == pytest.approx([0.75, 0.25])
    assert option_probabilities(np.array([1e4, 0.0]), temperature=1).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="finite rewards"):
        option_probabilities(np.array([np.nan, 1.0]), temperature=1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        option_probabilities(np.array([0.0, 1.0]), temperature=0)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_option_temperature_is_recovered(temperature):
    random = np.random.default_rng(0)
    rewards = [random.normal(0, 2, random.integers(2, 6)) for _ in range(200)]
    shares = [option_probabilities(reward, temperature=temperature) for reward in rewards]
    assert fit_option_temperature(rewards, shares) == pytest.approx(temperature, rel=1e-4)
    assert math.isnan(fit_option_temperature([], []))
    with pytest.raises(ValueError, match="a share per option"):
        fit_option_temperature([np.zeros(2)], [np.ones(3) / 3])
