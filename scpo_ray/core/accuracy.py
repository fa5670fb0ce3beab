"""Accuracy on pairs, and its interval under clustered sampling."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval. NaN where there is nothing to average; the interval also with one cluster."""

    value: float
    low: float
    high: float
    num_pairs: int
    num_clusters: int


def pair_correctness(
    *, chosen_rewards: Float[Array, " pairs"], rejected_rewards: Float[Array, " pairs"]
) -> Float[Array, " pairs"]:
    """1 where the chosen response scores higher, 0 where lower, 0.5 where equal (a coin would be right half the time).

    Raises:
        ValueError: shapes differ or a reward is NaN.
    """
    if chosen_rewards.shape != rejected_rewards.shape:
        raise ValueError(f"expected equal shapes, got chosen {chosen_rewards.shape}, rejected {rejected_rewards.shape}")
    if np.isnan(chosen_rewards).any() or np.isnan(rejected_rewards).any():
        raise ValueError(f"{int(np.isnan(chosen_rewards + rejected_rewards).sum())} pairs have a NaN reward")
    return np.where(chosen_rewards == rejected_rewards, 0.5, (chosen_rewards > rejected_rewards).astype(np.float64))


def cluster_bootstrap_mean(
    values: Float[Array, " pairs"],
    *,
    clusters: Sequence[str] | Array,
    num_resamples: int,
    seed: int,
    mask: Bool[Array, " pairs"] | None = None,
) -> Estimate:
    """Mean of `values` and its 95% percentile interval, resampling whole clusters (annotators or prompts).

    Each resample draws as many clusters as there are, with replacement, and divides the drawn clusters' sum by their
    number of pairs. Clusters without a pair under `mask` stay in the draw: how many of them a sample holds is chance
    too.

    Source: Field & Welsh (2007), cluster bootstrap.
    """
    keep = np.ones(len(values), dtype=bool) if mask is None else mask
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1] if len(values) else np.zeros(0, dtype=int)
    num_clusters = int(codes.max()) + 1 if len(codes) else 0
    sums = np.bincount(codes[keep], weights=values[keep], minlength=num_clusters)
    counts = np.bincount(codes[keep], minlength=num_clusters).astype(np.float64)
    occupied = int((counts > 0).sum())
    if not counts.sum():
        return Estimate(float("nan"), float("nan"), float("nan"), 0, 0)
    mean = float(sums.sum() / counts.sum())
    if occupied < 2:
        return Estimate(mean, float("nan"), float("nan"), int(counts.sum()), occupied)
    draws = np.random.default_rng(seed).multinomial(
        num_clusters, np.full(num_clusters, 1 / num_clusters), size=num_resamples
    )
    drawn = draws @ counts
    means = (draws @ sums)[drawn > 0] / drawn[drawn > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean, float(low), float(high), int(counts.sum()), occupied)


def effective_sample_size(weights: Float[Array, " pairs"]) -> float:
    """(Σw)² / Σw²: how many equally weighted pairs carry as much (Kish). 0 where all weights are 0."""
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0
