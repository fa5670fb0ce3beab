"""Tests of paired differences under clustered sampling, their correction for many tests, and what they could detect."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from scpo_ray.core.bootstrap import cluster_sums

Array = np.ndarray
_EXACT_UP_TO = 12
"""Clusters up to which all sign patterns are enumerated (4,096)."""


def paired_permutation_test(
    differences: Float[Array, " pairs"],
    *,
    clusters: Sequence[str] | Array,
    num_permutations: int,
    seed: int,
    mask: Bool[Array, " pairs"] | None = None,
) -> float:
    """Two-sided p-value of "neither model is better": within a cluster the two models' names may be exchanged together.

    The statistic is |Σ d|. Up to 12 clusters with a difference, every sign pattern counts once; beyond, `num_permutations`
    random ones and the observed one, so the smallest p is 1 / (num_permutations + 1) and never 0.

    Returns:
        p in (0, 1]; 1 where no pair differs, NaN with pairs of fewer than two clusters.

    Raises:
        ValueError: a difference is NaN.

    Source: Good (2005), permutation tests for paired data; Phipson & Smyth (2010), the added one.
    """
    grouped = cluster_sums(differences, clusters=clusters, mask=mask)
    if grouped.num_occupied < 2:
        return float("nan")
    sums = grouped.sums[grouped.sums != 0]
    if not len(sums):
        return 1.0
    observed = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()  # sums in another order may differ in the last bits
    if len(sums) <= _EXACT_UP_TO:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(sums))))
        return float((np.abs(signs @ sums) >= observed).mean())
    random = np.random.default_rng(seed)
    reached = 0
    rows = max(1, 4_000_000 // len(sums))
    for start in range(0, num_permutations, rows):
        drawn = random.integers(0, 2, (min(rows, num_permutations - start), len(sums)), dtype=np.int8)
        reached += int((np.abs((2 * drawn - 1) @ sums) >= observed).sum())
    return (reached + 1) / (num_permutations + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that keep the chance of any false rejection in the family at the level; NaNs stay out of it.

        p̃_(i) = min(1, max_{j ≤ i} (m - j + 1) p_(j))

    Source: Holm (1979).
    """
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(values), np.nan)
    order = np.argsort(values)[: int((~np.isnan(values)).sum())]  # NaNs sort to the end
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return [float(value) for value in adjusted]


def minimum_detectable_effect(
    differences: Float[Array, " pairs"],
    *,
    clusters: Sequence[str] | Array,
    mask: Bool[Array, " pairs"] | None = None,
    level: float = 0.05,
    power: float = 0.8,
) -> float:
    """Smallest true mean difference that a two-sided test on this sample's clusters would find with `power`.

        MDE = (t_{G-1}(1 - level/2) + t_{G-1}(power)) * SE,    SE clustered

    The spread of the observed differences stands for that of the differences to be found. NaN where nothing can be found
    or said: so few clusters that no pattern of signs is rare enough (2 / 2^G above the level: fewer than six at 5%), or
    differences without any spread.

    Source: Bloom (1995), multiples of the standard error.
    """
    grouped = cluster_sums(differences, clusters=clusters, mask=mask)
    freedom = grouped.num_occupied - 1
    error = grouped.standard_error()
    if 2 / 2**grouped.num_occupied > level or not error > 0:
        return float("nan")
    return float((stats.t.ppf(1 - level / 2, freedom) + stats.t.ppf(power, freedom)) * error)
