"""SCPO's ruler: how far the global reward model agrees with a preference, and the weight that follows.

Source: SCPO, filter (F) and weighting (W).
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit

Array = np.ndarray


def agreement(
    *,
    chosen_rewards: Float[Array, " pairs"],
    rejected_rewards: Float[Array, " pairs"],
    form: Literal["sigmoid", "exp_ratio"] = "sigmoid",
) -> Float[Array, " pairs"]:
    """Probability that the global reward model gives to the annotator's choice (Bradley-Terry).

        p = σ(r⁺ - r⁻)                      sigmoid: float64, exact for any rewards
        p = exp(r⁺) / (exp(r⁺) + exp(r⁻))   exp_ratio: float32, as published; NaN where exp overflows (reward > 88.7)

    Raises:
        ValueError: shapes differ, or a reward is not finite.
    """
    check_rewards(chosen_rewards, rejected_rewards)
    if form == "exp_ratio":
        with np.errstate(over="ignore", invalid="ignore"):
            chosen = np.exp(chosen_rewards.astype(np.float32))
            rejected = np.exp(rejected_rewards.astype(np.float32))
            ratio: Array = (chosen / (chosen + rejected)).astype(np.float64)
            return ratio
    probability: Array = expit(chosen_rewards.astype(np.float64) - rejected_rewards.astype(np.float64))
    return probability


def disagreement_mask(*, agreement: Float[Array, " pairs"], threshold: float) -> Bool[Array, " pairs"]:
    """The filter: true where p < τ, strictly. NaN is never kept, as in the published comparison."""
    kept: Array = agreement < threshold
    return kept


def preference_weight(
    *,
    chosen_rewards: Float[Array, " pairs"],
    rejected_rewards: Float[Array, " pairs"],
    temperature: float,
) -> Float[Array, " pairs"]:
    """SCPO's weight: 1 where the global model agrees, falling with the size of its disagreement.

        w = min(exp((r⁺ - r⁻) / β), 1) = exp(min((r⁺ - r⁻) / β, 0))

    The second form never overflows.

    Raises:
        ValueError: shapes differ, a reward is not finite, or β is not positive.
    """
    check_rewards(chosen_rewards, rejected_rewards)
    if not temperature > 0:
        raise ValueError(f"weight temperature must be positive, got {temperature}")
    gap = chosen_rewards.astype(np.float64) - rejected_rewards.astype(np.float64)
    weights: np.ndarray = np.exp(np.minimum(gap / temperature, 0.0))
    return weights


def check_rewards(chosen_rewards: Float[Array, " pairs"], rejected_rewards: Float[Array, " pairs"]) -> None:
    """Refuse rewards that no agreement follows from.

    Raises:
        ValueError: shapes differ, or a reward is not finite; names the first pair.
    """
    if chosen_rewards.shape != rejected_rewards.shape:
        raise ValueError(f"expected equal shapes, got chosen {chosen_rewards.shape}, rejected {rejected_rewards.shape}")
    finite = np.isfinite(chosen_rewards) & np.isfinite(rejected_rewards)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(
            f"pair {first} of {len(finite)} has rewards {chosen_rewards[first]} and {rejected_rewards[first]}; "
            f"{int((~finite).sum())} pairs are not finite"
        )
