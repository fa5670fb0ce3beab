"""Permutation tests, Holm's correction, detectable effects."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from scpo_ray.core.hypothesis import holm, minimum_detectable_effect, paired_permutation_test


def test_permutation_by_hand():
    """Cluster sums 2 and 1: of |±2 ±1| two of four reach 3. With a cluster of zero difference nothing changes."""
    values = np.array([1.0, 1.0, 1.0, 0.0])
    assert paired_permutation_test(values, clusters=["x", "x", "y", "z"], num_permutations=10, seed=0) == 0.5
    assert math.isnan(paired_permutation_test(values[:2], clusters=["x", "x"], num_permutations=10, seed=0))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), st.sampled_from("pqrst")), max_size=15))
def test_exact_permutation_matches_enumeration(rows):
    found = paired_permutation_test(
        np.array([value for value, _ in rows]), clusters=[name for _, name in rows], num_permutations=10, seed=0
    )
    if len({name for _, name in rows}) < 2:
        assert math.isnan(found)
        return
    sums = [sum(value for value, other in rows if other == name) for name in {name for _, name in rows}]
    patterns = [
        abs(sum(sign * value for sign, value in zip(signs, sums, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(sums))
    ]
    assert found == pytest.approx(sum(pattern >= abs(sum(sums)) - 1e-9 for pattern in patterns) / len(patterns))


def test_sampled_permutation_matches_scipy():
    values = np.random.default_rng(2).normal(0.2, 1, 40)
    found = paired_permutation_test(values, clusters=np.arange(40), num_permutations=20_000, seed=0)
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    ).pvalue
    assert found == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("num_clusters", [8, 40])
def test_type_one_error_is_at_its_level(num_clusters):
    """No true difference, clustered: the test rejects at 5% in 5% of 1,000 samples, give or take."""
    rejected = 0
    for simulation in range(1000):
        random = np.random.default_rng([num_clusters, simulation])
        clusters = np.repeat(np.arange(num_clusters), random.integers(1, 12, num_clusters))
        differences = random.normal(0, 1, num_clusters)[clusters] + random.normal(0, 1, len(clusters))
        rejected += (
            paired_permutation_test(differences, clusters=clusters, num_permutations=199, seed=simulation) <= 0.05
        )
    assert 0.03 <= rejected / 1000 <= 0.07


def test_a_test_that_ignores_clusters_would_reject_too_often():
    rejected = 0
    for simulation in range(200):
        random = np.random.default_rng(simulation)
        clusters = np.repeat(np.arange(30), 10)
        differences = random.normal(0, 1, 30)[clusters] + random.normal(0, 1, 300)
        rejected += paired_permutation_test(differences, clusters=np.arange(300), num_permutations=199, seed=0) <= 0.05
    assert rejected / 200 > 0.2


def test_holm_by_hand():
    """Sorted .01 .02 .03 .04, times 4 3 2 1, made monotone: .04 .06 .06 .06."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    with_nan = holm([0.01, float("nan"), 0.04])
    assert with_nan[::2] == pytest.approx([0.02, 0.04]) and math.isnan(with_nan[1])


def test_holm_matches_statsmodels():
    values = np.random.default_rng(4).random(12) ** 3
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])


def test_holm_controls_the_family():
    """Ten true hypotheses: any false rejection at 5% in at most 5% of families (uncorrected it would be 40%)."""
    random = np.random.default_rng(0)
    families = random.random((2000, 10))
    corrected = np.mean([min(holm(family)) <= 0.05 for family in families])
    uncorrected = np.mean(families.min(axis=1) <= 0.05)
    assert corrected <= 0.06
    assert uncorrected > 0.3


def test_minimum_detectable_effect_by_hand():
    """Six clusters, residuals of 1/2: SE sqrt(6/5 * 6/4)/6; t_5(0.975) = 2.57058, t_5(0.8) = 0.91954."""
    values = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    found = minimum_detectable_effect(values, clusters=list("uvwxyz"))
    assert found == pytest.approx((2.57058 + 0.91954) * math.sqrt(1.8) / 6, rel=1e-5)


def test_nothing_is_detectable_where_no_pattern_of_signs_is_rare_enough():
    """Of five annotators' 32 patterns two are as extreme as can be: p = 0.0625 at best."""
    values = np.array([1.0, 1.0, 1.0, 0.0, 0.5])
    assert paired_permutation_test(np.ones(5), clusters=list("vwxyz"), num_permutations=10, seed=0) == 2 / 32
    assert math.isnan(minimum_detectable_effect(values, clusters=list("vwxyz")))
    assert math.isnan(minimum_detectable_effect(np.ones(9), clusters=np.arange(9))), "no spread to go by"


def test_an_effect_of_the_detectable_size_is_found_as_often_as_the_power_says():
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(30), 6)
    effect = np.mean(
        [
            minimum_detectable_effect(random.normal(0, 1, 30)[clusters] + random.normal(0, 1, 180), clusters=clusters)
            for _ in range(50)
        ]
    )
    found = sum(
        paired_permutation_test(
            effect + random.normal(0, 1, 30)[clusters] + random.normal(0, 1, 180),
            clusters=clusters,
            num_permutations=199,
            seed=seed,
        )
        <= 0.05
        for seed in range(400)
    )
    assert 0.72 <= found / 400 <= 0.88
