"""Accuracy, its interval, and the effective sample size."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.core.accuracy import cluster_bootstrap_mean, effective_sample_size, pair_correctness
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


def test_mean_and_counts_by_hand():
    values, clusters = np.array([1.0, 0.0, 1.0, 0.5, 1.0]), ["x", "x", "y", "y", "z"]
    estimate = cluster_bootstrap_mean(values, clusters=clusters, num_resamples=200, seed=0)
    assert (estimate.value, estimate.num_pairs, estimate.num_clusters) == (0.7, 5, 3)
    assert 0.5 <= estimate.low <= 0.7 <= estimate.high <= 1.0
    masked = cluster_bootstrap_mean(
        values, clusters=clusters, num_resamples=200, seed=0, mask=np.array([True, True, True, False, False])
    )
    assert masked.value == pytest.approx(2 / 3)
    assert (masked.num_pairs, masked.num_clusters) == (3, 2)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.sampled_from("pqrst"), st.booleans()), min_size=1, max_size=30),
    st.integers(0, 5),
)
def test_interval_matches_explicit_resampling(rows, seed):
    values, clusters, mask = (list(column) for column in zip(*rows, strict=True))
    found = cluster_bootstrap_mean(
        np.array(values), clusters=clusters, num_resamples=50, seed=seed, mask=np.array(mask)
    )
    used = [(value, cluster) for value, cluster, keep in rows if keep]
    if len({cluster for _, cluster in used}) < 2:
        assert math.isnan(found.low)
        return
    names = sorted(set(clusters))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=50)
    means = []
    for draw in draws:
        drawn = [value for value, cluster in used for _ in range(draw[names.index(cluster)])]
        if drawn:
            means.append(sum(drawn) / len(drawn))
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.value == pytest.approx(sum(value for value, _ in used) / len(used), abs=1e-9)


def test_interval_covers_the_truth_of_clustered_data():
    num_covered, num_simulations = 0, 400
    for simulation in range(num_simulations):
        random = np.random.default_rng([7, simulation])
        clusters = np.repeat(np.arange(60), random.integers(2, 9, 60))
        values = 0.3 + random.normal(0, 1, 60)[clusters] + random.normal(0, 0.5, len(clusters))
        estimate = cluster_bootstrap_mean(values, clusters=clusters, num_resamples=400, seed=simulation)
        num_covered += estimate.low <= 0.3 <= estimate.high
    assert 0.91 <= num_covered / num_simulations <= 0.98


def test_same_seed_same_interval():
    random = np.random.default_rng(0)
    values, clusters = random.normal(size=100), np.arange(100) // 4
    first, again, other = (
        cluster_bootstrap_mean(values, clusters=clusters, num_resamples=300, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert first.value == other.value


def test_one_cluster_has_no_interval_and_no_pairs_no_mean():
    one = cluster_bootstrap_mean(np.array([1.0, 0.0]), clusters=["x", "x"], num_resamples=100, seed=0)
    assert (one.value, one.num_pairs, one.num_clusters) == (0.5, 2, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    none = cluster_bootstrap_mean(np.zeros(0), clusters=[], num_resamples=100, seed=0)
    masked = cluster_bootstrap_mean(
        np.ones(2), clusters=["x", "y"], num_resamples=100, seed=0, mask=np.zeros(2, dtype=bool)
    )
    for empty in (none, masked):
        assert (empty.num_pairs, empty.num_clusters) == (0, 0)
        assert all(math.isnan(number) for number in (empty.value, empty.low, empty.high))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-6, 1), max_size=30))
def test_effective_sample_size_matches_reference(weights):
    found = effective_sample_size(np.array(weights))
    assert found == pytest.approx(reference.effective_sample_size(weights), rel=1e-12)
    assert found <= len(weights) * (1 + 1e-12)


def test_effective_sample_size_by_hand():
    assert effective_sample_size(np.full(7, 0.3)) == pytest.approx(7)
    assert effective_sample_size(np.array([1.0, 0.5])) == pytest.approx(1.8)  # 1.5² / 1.25
    assert effective_sample_size(np.zeros(3)) == effective_sample_size(np.zeros(0)) == 0.0
