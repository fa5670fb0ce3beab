"""Gains of policies and the best of n, against brute force."""

import itertools
import math

import numpy as np
import pytest

from scpo_ray.evaluation.policies import Judgements, best_of, best_of_kl_bound, gain


def test_the_best_of_n_by_brute_force():
    random = np.random.default_rng(0)
    values, chosen_by = random.normal(size=(6, 8)), random.normal(size=(6, 8))
    for n, groups in ((1, 8), (2, 4), (3, 2), (8, 1)):
        expected = [
            [
                values[prompt, max(range(group * n, (group + 1) * n), key=lambda place: chosen_by[prompt, place])]
                for group in range(groups)
            ]
            for prompt in range(6)
        ]
        np.testing.assert_array_equal(best_of(values, chosen_by, n), expected)


def test_more_samples_are_better_by_their_own_judge():
    values = np.random.default_rng(1).normal(size=(500, 16))
    means = [best_of(values, values, n).mean() for n in (1, 2, 4, 16)]
    expected = [0.0, 0.5642, 1.0294, 1.7660]  # of the largest of n standard normals
    np.testing.assert_allclose(means, expected, atol=0.05)


def test_too_few_samples():
    with pytest.raises(ValueError, match="best of 3 from 2 samples"):
        best_of(np.zeros((1, 2)), np.zeros((1, 2)), 3)


def test_the_bound_on_the_divergence():
    """It holds for a policy over k equal responses, whose best-of-n distribution can be written down."""
    assert best_of_kl_bound(1) == 0.0
    for n, k in itertools.product((2, 5), (10, 1000)):
        best = np.diff((np.arange(k + 1) / k) ** n)
        divergence = float((best * np.log(best * k)).sum())
        assert divergence <= best_of_kl_bound(n)
        if k == 1000:
            assert math.isclose(divergence, best_of_kl_bound(n), abs_tol=0.01)


def test_a_gain_is_paired_by_prompt():
    """Prompts differ by far more than policies do; beside the start policy on the same prompt the gain is exact."""
    level = np.array([[10.0], [-10.0], [3.0], [0.0]])
    start = Judgements("truth", "A", level + np.array([[0.5, -0.5]]))
    policy = Judgements("truth", "A", level + np.array([[1.0, 2.0]]))
    found = gain(policy, start, groups=["g1", "g2", "g3", "g4"], num_resamples=200, seed=0)
    assert found.value == 1.5
    assert found.low == found.high == 1.5
    assert (found.num_pairs, found.num_clusters) == (8, 4)


def test_near_duplicate_prompts_are_one_cluster():
    effect = np.repeat(np.random.default_rng(2).normal(size=20), 2)[:, np.newaxis]
    start, policy = Judgements("truth", "A", np.zeros((40, 1))), Judgements("truth", "A", effect)
    apart = gain(policy, start, groups=[str(row) for row in range(40)], num_resamples=2000, seed=0)
    together = gain(policy, start, groups=[str(row // 2) for row in range(40)], num_resamples=2000, seed=0)
    assert together.num_clusters == 20
    assert 1.2 < (together.high - together.low) / (apart.high - apart.low) < 1.7  # the square root of two


def test_other_judges_are_not_compared():
    proxy, truth = (Judgements(kind, "A", np.zeros((2, 1))) for kind in ("proxy", "truth"))
    with pytest.raises(ValueError, match="proxy of A is compared with truth of A"):
        gain(proxy, truth, groups=["a", "b"], num_resamples=100, seed=0)
