"""Rewards as a distribution over a question's options, and how far it is from a community's."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, softmax

Array = np.ndarray
TEMPERATURE_BOUNDS = (1e-2, 1e2)
"""Where a fitted temperature is looked for, reward units."""


def option_probabilities(rewards: Float[Array, " options"], *, temperature: float) -> Float[Array, " options"]:
    """softmax(r / T) over a question's options; sums to 1.

    Raises:
        ValueError: a reward is not finite, there is no option, or T is not positive.
    """
    if not len(rewards) or not np.isfinite(rewards).all():
        raise ValueError(f"expected finite rewards of at least one option, got {rewards}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    probabilities: Array = softmax(rewards.astype(np.float64) / temperature)
    return probabilities


def jensen_shannon_distance(p: Float[Array, " options"], q: Float[Array, " options"]) -> float:
    """sqrt(JSD) to base 2, in [0, 1]: 0 for equal distributions, 1 for disjoint ones. Options of zero mass are fine.

    Raises:
        ValueError: shapes differ, or one of the two is no distribution (NaN, negative, or a sum that is not 1 to 1e-6):
            a NaN must never pass for a distance.

    Source: Endres & Schindelin (2003); the similarity of Durmus et al. (2023) is 1 minus this.
    """
    if p.shape != q.shape:
        raise ValueError(f"expected equal shapes, got {p.shape} and {q.shape}")
    for distribution in (p, q):
        if not (np.isfinite(distribution).all() and (distribution >= 0).all() and abs(distribution.sum() - 1) <= 1e-6):
            raise ValueError(f"not a distribution over options: {distribution}")
    if np.array_equal(p, q):
        return 0.0  # scipy's square root of a rounding error below zero would be NaN
    with np.errstate(invalid="ignore"):
        distance = float(jensenshannon(p, q, base=2))
    return 0.0 if np.isnan(distance) else min(distance, 1.0)


def fit_option_temperature(
    rewards: Sequence[Float[Array, " options"]], shares: Sequence[Float[Array, " options"]]
) -> float:
    """T > 0 that minimises the mean cross-entropy of softmax(r / T) against the shares of each question.

    Returns:
        T in reward units, within TEMPERATURE_BOUNDS; NaN without questions.

    Raises:
        ValueError: the lists differ in length, or a question's rewards and shares do, or a reward is not finite.
    """
    if not len(rewards):
        return float("nan")
    pairs = list(zip(rewards, shares, strict=True))
    for reward, share in pairs:
        if reward.shape != share.shape:
            raise ValueError(f"expected a share per option, got {reward.shape} rewards and {share.shape} shares")
        if not np.isfinite(reward).all():
            raise ValueError(f"expected finite rewards, got {reward}")
    low, high = np.log(TEMPERATURE_BOUNDS)

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return -float(np.mean([np.dot(share, log_softmax(reward * scale)) for reward, share in pairs]))

    found = float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8}).x)
    return float(np.exp(min((low, found, high), key=loss)))
