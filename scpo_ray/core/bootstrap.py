"""Intervals under clustered sampling: whole annotators (or prompts) are drawn again, never single pairs.

Every figure of the evaluation is a ratio of sums over pairs (a mean, a mean under a mask, a mean paired difference), so
a resample needs only each cluster's two sums: 10,000 resamples cost the same for 500 pairs and for 500,000.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

Array = np.ndarray
_DRAWS_AT_ONCE = 4_000_000
"""Cluster draws held in memory together; bounds memory at some 100 MB whatever the data's size."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval. NaN where there is nothing to average; the interval also with one cluster."""

    value: float
    low: float
    high: float
    num_pairs: int
    num_clusters: int


@dataclass(frozen=True)
class ClusterSums:
    """Per cluster: Σ values and the number of pairs, under the mask. Clusters without a pair stay."""

    sums: Float[Array, " clusters"]
    counts: Float[Array, " clusters"]

    @property
    def mean(self) -> float:
        """Σ values / number of pairs; NaN without pairs."""
        total = self.counts.sum()
        return float(self.sums.sum() / total) if total else float("nan")

    @property
    def num_occupied(self) -> int:
        """Clusters with a pair under the mask."""
        return int((self.counts > 0).sum())

    def standard_error(self) -> float:
        """Of the mean, linearised, with the factor G/(G-1): sqrt(G/(G-1) Σ_g (s_g - m n_g)²) / N. NaN below two clusters.

        Source: Cochran (1977), ratio estimator; equals statsmodels' `cov_type="cluster"` for a regression on a
        constant up to its factor (N-1)/(N-k).
        """
        occupied = self.num_occupied
        if occupied < 2:
            return float("nan")
        residuals = self.sums - self.mean * self.counts
        return float(np.sqrt(occupied / (occupied - 1) * np.square(residuals).sum()) / self.counts.sum())


def cluster_sums(
    values: Float[Array, " pairs"],
    *,
    clusters: Sequence[str] | Array,
    mask: Bool[Array, " pairs"] | None = None,
) -> ClusterSums:
    """Sums by cluster.

    Raises:
        ValueError: lengths differ, or a value under the mask is NaN: it would silently shift or void the mean.
    """
    if len(values) != len(clusters) or (mask is not None and len(mask) != len(values)):
        raise ValueError(
            f"{len(values)} values, {len(clusters)} clusters, mask of {len(values if mask is None else mask)}"
        )
    keep = np.ones(len(values), dtype=bool) if mask is None else mask
    if np.isnan(values[keep]).any():
        raise ValueError(f"{int(np.isnan(values[keep]).sum())} of {int(keep.sum())} values are NaN")
    codes = _codes(clusters)
    size = int(codes.max()) + 1 if len(codes) else 0
    return ClusterSums(
        np.bincount(codes[keep], weights=values[keep], minlength=size),
        np.bincount(codes[keep], minlength=size).astype(np.float64),
    )


def cluster_bootstrap_mean(
    values: Float[Array, " pairs"],
    *,
    clusters: Sequence[str] | Array,
    num_resamples: int,
    seed: int,
    mask: Bool[Array, " pairs"] | None = None,
    method: Literal["percentile", "bca"] = "bca",
) -> Estimate:
    """Mean of `values` and its 95% interval, resampling whole clusters.

    Each resample draws as many clusters as there are, with replacement, and divides the drawn clusters' sum by their
    number of pairs. Clusters without a pair under `mask` stay in the draw: how many of them a sample holds is chance
    too. The percentiles are taken at Φ(±sqrt(G/(G-1)) t_{G-1}(0.975)) instead of Φ(±1.96), by which a bootstrap of few
    clusters is too narrow, with G = (Σn)² / Σn² the number of clusters of equal size that would carry as much: ten
    clusters of one size give 0.9% and 99.1%. BCa moves them for bias and skewness; in simulations of unequal clusters
    (tests/core/test_bootstrap.py) it covers 93-97%.

    Source: Field & Welsh (2007), cluster bootstrap; Hesterberg (2015), expanded percentiles; Carter, Schnepel &
    Steigerwald (2017), effective number of clusters; Efron (1987), BCa.
    """
    grouped = cluster_sums(values, clusters=clusters, mask=mask)
    num_pairs, occupied = int(grouped.counts.sum()), grouped.num_occupied
    if occupied < 2:
        return Estimate(grouped.mean, float("nan"), float("nan"), num_pairs, occupied)
    means = _resampled([grouped], num_resamples=num_resamples, seed=seed)[0]
    deviates = _expanded_deviates(_effective_clusters(grouped))
    if method == "bca":
        deviates = _bca_deviates(grouped.mean, means, _left_out(grouped)[grouped.counts > 0], deviates)
    low, high = np.quantile(means, stats.norm.cdf(deviates))
    return Estimate(grouped.mean, float(low), float(high), num_pairs, occupied)


def cluster_bootstrap_difference(
    first: Float[Array, " first"],
    second: Float[Array, " second"],
    *,
    first_clusters: Sequence[str] | Array,
    second_clusters: Sequence[str] | Array,
    num_resamples: int,
    seed: int,
) -> Estimate:
    """Mean of `first` minus mean of `second`, other pairs, and its 95% interval (BCa).

    A resample draws clusters of both together, so that a cluster which has pairs on both sides (a prompt that two
    communities rated) moves both means at once; clusters of one side alone (annotators) leave the other as it is.
    Percentiles are expanded as for one mean, with Welch's degrees of freedom.

    Returns:
        num_pairs counts `first`, num_clusters those of `first`; no interval where a side has fewer than two clusters.

    Source: as `cluster_bootstrap_mean`; Welch (1947).
    """
    names = np.unique(np.concatenate([np.asarray(first_clusters, dtype=object), second_clusters]), return_inverse=True)[
        1
    ]
    values = np.concatenate([first, second])
    is_first = np.arange(len(values)) < len(first)
    sides = [cluster_sums(values, clusters=names, mask=side) for side in (is_first, ~is_first)]
    difference = sides[0].mean - sides[1].mean
    num_clusters = sides[0].num_occupied
    if min(side.num_occupied for side in sides) < 2:
        return Estimate(difference, float("nan"), float("nan"), len(first), num_clusters)
    means = _resampled(sides, num_resamples=num_resamples, seed=seed)
    left_out = _left_out(sides[0]) - _left_out(sides[1])
    deviates = _expanded_deviates(_welch_clusters(*sides))
    differences = np.sort(means[0] - means[1])
    low, high = np.quantile(differences, stats.norm.cdf(_bca_deviates(difference, differences, left_out, deviates)))
    return Estimate(difference, float(low), float(high), len(first), num_clusters)


def effective_sample_size(weights: Float[Array, " pairs"]) -> float:
    """(Σw)² / Σw²: how many equally weighted pairs carry as much (Kish 1965). 0 where all weights are 0."""
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def _resampled(groups: Sequence[ClusterSums], *, num_resamples: int, seed: int) -> list[Float[Array, " resamples"]]:
    """Each group's mean in every resample of the common clusters that drew a pair of all of them; one mean is sorted."""
    random = np.random.default_rng(seed)
    size = len(groups[0].sums)
    rows = max(1, _DRAWS_AT_ONCE // size)
    found: list[list[Array]] = [[] for _ in groups]
    for start in range(0, num_resamples, rows):
        drawn: Int[Array, "rows clusters"] = random.integers(0, size, (min(rows, num_resamples - start), size))
        counts = [group.counts[drawn].sum(axis=1) for group in groups]
        drew = np.all([count > 0 for count in counts], axis=0)
        for means, group, count in zip(found, groups, counts, strict=True):
            means.append(group.sums[drawn].sum(axis=1)[drew] / count[drew])
    together = [np.concatenate(means) for means in found]
    return [np.sort(together[0])] if len(together) == 1 else together


def _left_out(grouped: ClusterSums) -> Float[Array, " clusters"]:
    """The mean without each cluster in turn; unchanged where a cluster has no pair."""
    left: Array = (grouped.sums.sum() - grouped.sums) / (grouped.counts.sum() - grouped.counts)
    return left


def _effective_clusters(grouped: ClusterSums) -> float:
    """(Σn)² / Σn²: clusters of equal size that would carry as much."""
    return float(grouped.counts.sum() ** 2 / np.square(grouped.counts).sum())


def _welch_clusters(first: ClusterSums, second: ClusterSums) -> float:
    """Welch's degrees of freedom plus one, from the effective clusters of both sides."""
    variances = [side.standard_error() ** 2 for side in (first, second)]
    freedom = [_effective_clusters(side) - 1 for side in (first, second)]
    if not sum(variances):
        return min(freedom) + 1
    return sum(variances) ** 2 / sum(v**2 / f for v, f in zip(variances, freedom, strict=True)) + 1


def _expanded_deviates(effective: float) -> Float[Array, " 2"]:
    """-z and z whose normal tails are the percentiles to take; 1.96 for very many clusters of one size."""
    z = float(stats.t.ppf(0.975, effective - 1) * np.sqrt(effective / (effective - 1)))
    z = min(z, 8.0)  # beyond it lies no resample; one cluster that holds nearly every pair would make it infinite
    return np.array([-z, z])


def _bca_deviates(
    estimate: float,
    resampled: Float[Array, " resamples"],
    left_out: Float[Array, " clusters"],
    deviates: Float[Array, " 2"],
) -> Float[Array, " 2"]:
    """Bias-corrected and accelerated ones; the plain ones where the resamples do not vary."""
    below = ((resampled < estimate).sum() + 0.5 * (resampled == estimate).sum()) / len(resampled)
    deviations = left_out.mean() - left_out
    spread = np.square(deviations).sum()
    if not 0 < below < 1 or not spread:
        return deviates
    bias = float(stats.norm.ppf(below))
    acceleration = float((deviations**3).sum() / (6 * spread**1.5))
    z = bias + deviates
    return np.array(bias + z / np.maximum(1 - acceleration * z, 1e-6))


def _codes(clusters: Sequence[str] | Array) -> Int[Array, " pairs"]:
    if not len(clusters):
        return np.zeros(0, dtype=np.int64)
    codes: Array = np.unique(np.asarray(clusters), return_inverse=True)[1]
    return codes
