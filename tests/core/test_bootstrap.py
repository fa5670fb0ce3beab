"""Clustered intervals: hand-worked sums, explicit resampling, and coverage on simulated clustered data."""

import math
import time

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scpo_ray.core.bootstrap import (
    cluster_bootstrap_difference,
    cluster_bootstrap_mean,
    cluster_sums,
    effective_sample_size,
)
from tests import reference


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
    """The same draws, but of the pairs themselves, and the percentiles of Hesterberg's expansion from its formula."""
    values, clusters, mask = (list(column) for column in zip(*rows, strict=True))
    found = cluster_bootstrap_mean(
        np.array(values), clusters=clusters, num_resamples=50, seed=seed, mask=np.array(mask), method="percentile"
    )
    used = [(value, cluster) for value, cluster, keep in rows if keep]
    sizes = [sum(other == name for _, other in used) for name in {cluster for _, cluster in used}]
    if len(sizes) < 2:
        assert math.isnan(found.low)
        return
    size = sum(sizes) ** 2 / sum(size**2 for size in sizes)
    names = sorted(set(clusters))
    means = []
    for draw in np.random.default_rng(seed).integers(0, len(names), (50, len(names))):
        drawn = [value for index in draw for value, cluster in used if cluster == names[index]]
        if drawn:
            means.append(sum(drawn) / len(drawn))
    tail = stats.norm.cdf(-math.sqrt(size / (size - 1)) * stats.t.ppf(0.975, size - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.value == pytest.approx(sum(value for value, _ in used) / len(used), abs=1e-9)


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("num_clusters", [12, 40, 150])
def test_intervals_cover_the_truth_of_clustered_data(num_clusters, method):
    """Accuracies whose cluster means vary, clusters of very unequal size: 93-97% of 1,000 intervals hold the truth."""
    covered = 0
    for simulation in range(1000):
        random = np.random.default_rng([num_clusters, simulation])
        sizes = 1 + random.geometric(0.2, num_clusters)
        clusters = np.repeat(np.arange(num_clusters), sizes)
        accuracy = random.beta(6, 4, num_clusters)  # mean 0.6, whatever the cluster's size
        correct = (random.random(len(clusters)) < accuracy[clusters]).astype(np.float64)
        estimate = cluster_bootstrap_mean(correct, clusters=clusters, num_resamples=500, seed=simulation, method=method)
        covered += estimate.low <= 0.6 <= estimate.high
    assert 0.93 <= covered / 1000 <= 0.97


def test_intervals_that_ignore_clusters_would_not_cover():
    """Why clusters are drawn: the same data, each pair its own cluster, covers far less."""
    covered = 0
    for simulation in range(300):
        random = np.random.default_rng([40, simulation])
        clusters = np.repeat(np.arange(40), 1 + random.geometric(0.1, 40))
        accuracy = random.beta(3, 2, 40)
        correct = (random.random(len(clusters)) < accuracy[clusters]).astype(np.float64)
        estimate = cluster_bootstrap_mean(
            correct, clusters=np.arange(len(clusters)), num_resamples=300, seed=simulation
        )
        covered += estimate.low <= 0.6 <= estimate.high
    assert covered / 300 < 0.85


def test_bca_matches_scipy():
    """One pair a cluster is the plain bootstrap; scipy's BCa at the expanded level agrees to resampling noise."""
    values = np.random.default_rng(3).exponential(size=60)
    found = cluster_bootstrap_mean(values, clusters=np.arange(60), num_resamples=20_000, seed=0, method="bca")
    level = 2 * stats.norm.cdf(math.sqrt(60 / 59) * stats.t.ppf(0.975, 59)) - 1
    expected = stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    plain = cluster_bootstrap_mean(values, clusters=np.arange(60), num_resamples=20_000, seed=0, method="percentile")
    assert found.low > plain.low + 0.01 and found.high > plain.high + 0.01, "skewed data: both ends move up"


def test_ten_thousand_resamples_of_fifty_thousand_pairs_take_seconds():
    random = np.random.default_rng(0)
    clusters = random.integers(0, 1500, 50_000)
    values = random.random(50_000)
    start = time.monotonic()
    cluster_bootstrap_mean(values, clusters=clusters, num_resamples=10_000, seed=0, method="bca")
    assert time.monotonic() - start < 5


def test_standard_error_matches_statsmodels():
    random = np.random.default_rng(5)
    clusters = random.integers(0, 30, 400)
    values = random.normal(size=400) + random.normal(size=30)[clusters]
    found = cluster_sums(values, clusters=clusters).standard_error()
    fit = sm.OLS(values, np.ones(400)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert found == pytest.approx(fit.bse[0], rel=1e-9)


def test_standard_error_by_hand():
    """Clusters x: 1, 0 and y: 1: mean 2/3, residual sums -1/3 and 1/3; sqrt(2/1 * 2/9) / 3."""
    grouped = cluster_sums(np.array([1.0, 0.0, 1.0]), clusters=["x", "x", "y"])
    assert grouped.standard_error() == pytest.approx(math.sqrt(4 / 9) / 3)


def test_a_nan_is_an_error_unless_masked():
    values, clusters = np.array([1.0, np.nan, 0.0]), ["x", "y", "z"]
    with pytest.raises(ValueError, match="1 of 3 values are NaN"):
        cluster_bootstrap_mean(values, clusters=clusters, num_resamples=100, seed=0)
    masked = cluster_bootstrap_mean(
        values, clusters=clusters, num_resamples=100, seed=0, mask=np.array([True, False, True])
    )
    assert masked.value == 0.5
    with pytest.raises(ValueError, match="3 values, 2 clusters"):
        cluster_bootstrap_mean(values, clusters=["x", "y"], num_resamples=100, seed=0)


def test_same_seed_same_interval():
    random = np.random.default_rng(0)
    values, clusters = random.normal(size=100), np.arange(100) // 4
    first, again, other = (
        cluster_bootstrap_mean(values, clusters=clusters, num_resamples=300, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert first.value == other.value


def test_equal_values_have_a_point_for_an_interval():
    for method in ("percentile", "bca"):
        same = cluster_bootstrap_mean(
            np.full(6, 0.5), clusters=list("aabbcc"), num_resamples=100, seed=0, method=method
        )
        assert (same.low, same.value, same.high) == (0.5, 0.5, 0.5)


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


class TestDifferenceOfTwoMeans:
    def test_by_hand(self):
        found = cluster_bootstrap_difference(
            np.array([1.0, 1.0, 0.0]),
            np.array([0.0, 1.0, 0.0, 0.0]),
            first_clusters=["x", "y", "y"],
            second_clusters=["u", "u", "v", "w"],
            num_resamples=200,
            seed=0,
        )
        assert found.value == pytest.approx(2 / 3 - 1 / 4)
        assert (found.num_pairs, found.num_clusters) == (3, 2)
        assert found.low < found.value < found.high

    @pytest.mark.parametrize("shares_clusters", [True, False])
    def test_covers_the_truth(self, shares_clusters):
        """Means 0.8 and 0.6; a cluster's own effect is on both sides where they share it."""
        covered = 0
        for simulation in range(1000):
            random = np.random.default_rng([7, simulation])
            sides = []
            effect = random.normal(0, 0.12, 40)
            for mean, number in ((0.8, 40), (0.6, 25)):
                if not shares_clusters:
                    effect = random.normal(0, 0.12, number)
                clusters = np.repeat(np.arange(number), 1 + random.geometric(0.3, number))
                rate = np.clip(mean + effect, 0, 1)[clusters]
                names = [f"{'' if shares_clusters else mean}-{cluster}" for cluster in clusters]
                sides.append(((random.random(len(clusters)) < rate).astype(np.float64), names))
            found = cluster_bootstrap_difference(
                sides[0][0],
                sides[1][0],
                first_clusters=sides[0][1],
                second_clusters=sides[1][1],
                num_resamples=500,
                seed=simulation,
            )
            covered += found.low <= self._truth() <= found.high
        assert 0.93 <= covered / 1000 <= 0.97

    @staticmethod
    def _truth() -> float:
        """Clipping at 1 pulls the higher mean down."""
        effects = stats.norm(0, 0.12).ppf((np.arange(100_000) + 0.5) / 100_000)
        return float(np.clip(0.8 + effects, 0, 1).mean() - np.clip(0.6 + effects, 0, 1).mean())

    def test_a_prompt_on_both_sides_cancels(self):
        """Each prompt is easy or hard for both: together the difference is known well, apart it is not."""
        easy = np.tile([1.0, 0.0], 30)
        names = [f"prompt {n}" for n in range(60)]
        together = cluster_bootstrap_difference(
            easy, easy, first_clusters=names, second_clusters=names, num_resamples=500, seed=0
        )
        apart = cluster_bootstrap_difference(
            easy,
            easy,
            first_clusters=names,
            second_clusters=[f"other {name}" for name in names],
            num_resamples=500,
            seed=0,
        )
        assert (together.low, together.value, together.high) == (0.0, 0.0, 0.0)
        assert apart.high - apart.low > 0.25

    def test_a_side_of_one_cluster_has_no_interval(self):
        found = cluster_bootstrap_difference(
            np.array([1.0, 0.0]),
            np.array([0.0, 0.0]),
            first_clusters=["x", "x"],
            second_clusters=["u", "v"],
            num_resamples=50,
            seed=0,
        )
        assert found.value == 0.5 and math.isnan(found.low) and math.isnan(found.high)
        empty = cluster_bootstrap_difference(
            np.zeros(0), np.ones(2), first_clusters=[], second_clusters=["u", "v"], num_resamples=50, seed=0
        )
        assert math.isnan(empty.value) and empty.num_pairs == 0

    def test_matches_scipy(self):
        """Every pair its own cluster is the plain two-sample bootstrap, but for the sizes of the sides, which are drawn too."""
        random = np.random.default_rng(8)
        first, second = random.exponential(size=80), random.normal(size=60)
        found = cluster_bootstrap_difference(
            first,
            second,
            first_clusters=[f"x{n}" for n in range(80)],
            second_clusters=[f"y{n}" for n in range(60)],
            num_resamples=20_000,
            seed=0,
        )
        expected = stats.bootstrap(
            (first, second),
            lambda x, y, axis: x.mean(axis) - y.mean(axis),
            n_resamples=20_000,
            method="BCa",
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)
        welch = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
        assert found.high - found.low == pytest.approx(welch.high - welch.low, rel=0.06)


def test_one_cluster_that_holds_nearly_everything():
    """No crash, and the interval is as wide as what the two clusters say."""
    values = np.concatenate([np.ones(1000), np.zeros(1)])
    found = cluster_bootstrap_mean(values, clusters=["x"] * 1000 + ["y"], num_resamples=200, seed=0)
    assert found.low == 0.0 and found.high == 1.0


def test_intervals_of_a_part_cover_the_truth():
    """Accuracy under a mask that depends on the pair (what the ruler gets wrong): how much of it is drawn is chance too."""
    covered = 0
    for simulation in range(1000):
        random = np.random.default_rng([11, simulation])
        clusters = np.repeat(np.arange(40), 1 + random.geometric(0.2, 40))
        mask = random.random(len(clusters)) < random.beta(2, 4, 40)[clusters]
        correct = (random.random(len(clusters)) < random.beta(5, 5, 40)[clusters]).astype(np.float64)
        found = cluster_bootstrap_mean(correct, clusters=clusters, num_resamples=500, seed=simulation, mask=mask)
        covered += found.low <= 0.5 <= found.high
    assert 0.93 <= covered / 1000 <= 0.97
