"""Agreement between communities and the variance that they explain."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from scpo_ray.core.communities import Votes, agreement_matrix, community_variance


def votes_from(rows) -> Votes:
    """Rows of (item, community, annotator, prefers first)."""
    item, community, annotator, first = (np.array(column) for column in zip(*rows, strict=True))
    return Votes(item, community, annotator, first.astype(np.float64))


def test_agreement_by_hand():
    """Item 0: community 0 votes 1 1 0, community 1 votes 1. Between: 2/3. Within 0: one agreeing pair of three."""
    votes = votes_from([(0, 0, 0, 1), (0, 0, 1, 1), (0, 0, 2, 0), (0, 1, 3, 1)])
    matrix, shared = agreement_matrix(votes, num_communities=3)
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(2 / 3)
    assert matrix[0, 0] == pytest.approx(1 / 3)
    assert math.isnan(matrix[1, 1]) and np.isnan(matrix[2]).all()
    assert shared.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]


row = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 9), st.integers(0, 1))


@settings(max_examples=100, deadline=None)
@given(st.lists(row, min_size=1, max_size=30))
def test_agreement_matches_counting_pairs_of_votes(rows):
    matrix, _ = agreement_matrix(votes_from(rows), num_communities=3)
    for first, second in itertools.product(range(3), repeat=2):
        shares = []
        for item in range(4):
            ours = [(index, r[3]) for index, r in enumerate(rows) if r[:2] == (item, first)]
            theirs = [(index, r[3]) for index, r in enumerate(rows) if r[:2] == (item, second)]
            pairs = [a == b for (i, a), (j, b) in itertools.product(ours, theirs) if i != j]
            if pairs:
                shares.append(sum(pairs) / len(pairs))
        expected = sum(shares) / len(shares) if shares else math.nan
        assert matrix[first, second] == pytest.approx(expected, nan_ok=True)


def simulated(between: float, seed: int, *, num_annotators: int = 60, num_items: int = 40) -> Votes:
    """Binary votes; on each item two communities' chances of preferring the first differ by 2 * `between`."""
    random = np.random.default_rng(seed)
    community = np.arange(num_annotators) % 2
    side = random.choice([-1, 1], num_items)
    rows = [
        (item, community[a], a, random.random() < 0.5 + between * side[item] * (2 * community[a] - 1))
        for item in range(num_items)
        for a in range(num_annotators)
    ]
    return votes_from(rows)


@pytest.mark.parametrize("between", [0.0, 0.1, 0.3])
def test_components_are_recovered(between):
    """Chances 0.5 ± b: the variance between two communities is 2 b² (n - 1 in the denominator), within 0.25 - b²."""
    found = [community_variance(simulated(between, seed), num_permutations=1, seed=0) for seed in range(10)]
    assert np.mean([one.between for one in found]) == pytest.approx(2 * between**2, abs=0.004)
    assert np.mean([one.within for one in found]) == pytest.approx(0.25 - between**2, abs=0.004)


def test_components_by_hand():
    """One item, community 0 votes 1 1 0, community 1 votes 0 0: within (2/3) / 3; MSB = 8/15; n0 = 12/5."""
    votes = votes_from([(5, 0, 0, 1), (5, 0, 1, 1), (5, 0, 2, 0), (5, 1, 3, 0), (5, 1, 4, 0)])
    found = community_variance(votes, num_permutations=10, seed=0)
    assert found.within == pytest.approx(2 / 9)
    assert found.between == pytest.approx((8 / 15 - 2 / 9) / (12 / 5))
    assert found.share == pytest.approx(found.between / (found.between + found.within))
    assert (found.num_votes, found.num_items) == (5, 1)


def test_the_permutation_test_keeps_its_level_and_sees_a_difference():
    rejected = sum(
        community_variance(simulated(0.0, seed, num_items=10), num_permutations=99, seed=seed).p_value <= 0.05
        for seed in range(200)
    )
    assert 0.01 <= rejected / 200 <= 0.1
    assert community_variance(simulated(0.2, 0), num_permutations=99, seed=0).p_value == 0.01


def test_annotators_move_as_a_whole():
    """Two annotators' moods, told 40 times each, are not 80 independent votes for a difference of communities."""
    rows = [(item, community, community, community) for item in range(40) for community in (0, 1)]
    rows += [(item, community, 2 + community, 1 - community) for item in range(40) for community in (0, 1)]
    assert community_variance(votes_from(rows), num_permutations=99, seed=0).p_value > 0.3


def test_nothing_to_compare():
    alone = community_variance(votes_from([(0, 0, 0, 1), (0, 0, 1, 0), (1, 1, 2, 1)]), num_permutations=5, seed=0)
    assert math.isnan(alone.between) and math.isnan(alone.p_value) and math.isnan(alone.share)
    assert alone.num_votes == 0
    aggregates = community_variance(votes_from([(0, 0, 0, 1), (0, 1, 1, 0)]), num_permutations=5, seed=0)
    assert math.isnan(aggregates.within) and math.isnan(aggregates.p_value)
    with pytest.raises(ValueError, match="different lengths"):
        Votes(np.zeros(2, dtype=int), np.zeros(1, dtype=int), np.zeros(2, dtype=int), np.zeros(2))


def test_components_match_statsmodels_analysis_of_variance():
    """One item: the mean squares of a one-way analysis, and between = (MSB - MSW) / n0."""
    random = np.random.default_rng(6)
    communities = np.repeat([0, 1, 2], [9, 14, 6])
    values = (random.random(29) < np.array([0.2, 0.6, 0.8])[communities]).astype(int)
    votes = votes_from(
        [(0, community, n, value) for n, (community, value) in enumerate(zip(communities, values, strict=True))]
    )
    data = {"value": values.astype(float), "community": communities}
    squares = anova_lm(ols("value ~ C(community)", data=data).fit())["mean_sq"]
    sizes = np.bincount(communities)
    n0 = (29 - (sizes**2).sum() / 29) / 2
    found = community_variance(votes, num_permutations=5, seed=0)
    assert found.within == pytest.approx(squares["Residual"])
    assert found.between == pytest.approx((squares["C(community)"] - squares["Residual"]) / n0)
