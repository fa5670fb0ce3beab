"""Losses of reward models, as sums over a part of a batch divided by the whole batch's normaliser.

A part may be a rank's or an accumulation step's share: the parts' losses (and gradients) add up to the batch's, so
that a result depends on neither.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def weighted_bradley_terry_loss(
    *,
    chosen_rewards: Float[Tensor, " pairs"],
    rejected_rewards: Float[Tensor, " pairs"],
    weights: Float[Tensor, " pairs"],
    margins: Float[Tensor, " pairs"] | None = None,
    normalizer: float | None = None,
) -> Float[Tensor, ""]:
    """Negative log-likelihood that `chosen` beats `rejected`, weighted per pair.

        L = -(1/N) Σᵢ wᵢ log σ(r⁺ᵢ - r⁻ᵢ - mᵢ)

    Args:
        chosen_rewards: r⁺, the trained model's logits.
        rejected_rewards: r⁻, same scale.
        weights: w ≥ 0, constant under differentiation.
        margins: m, reward units that must separate the two; none when unset.
        normalizer: N of the global batch (see `batch_normalizer`); the number of pairs given here when unset.

    Returns:
        Scalar, nats per pair. With N = number of pairs, light pairs take small steps. Zero for no pairs.

    Raises:
        ValueError: shapes differ (broadcasting would silently mix pairs), or N is not positive.

    Source: SCPO, weighted objective; Bradley & Terry (1952).
    """
    _check_shapes(chosen_rewards, rejected_rewards, weights)
    reward_margin = chosen_rewards - rejected_rewards
    if margins is not None:
        _check_shapes(chosen_rewards, rejected_rewards, margins)
        reward_margin = reward_margin - margins
    return -(weights * F.logsigmoid(reward_margin)).sum() / _normalizer(normalizer, chosen_rewards)


def reward_centering_loss(
    *,
    chosen_rewards: Float[Tensor, " pairs"],
    rejected_rewards: Float[Tensor, " pairs"],
    normalizer: float | None = None,
) -> Float[Tensor, ""]:
    """(1/N) Σᵢ (r⁺ᵢ + r⁻ᵢ)²: keeps rewards near zero, which a Bradley-Terry loss leaves free.

    Source: Eisenstein et al. (2023), "Helping or Herding?".
    """
    _check_shapes(chosen_rewards, rejected_rewards, chosen_rewards)
    return (chosen_rewards + rejected_rewards).square().sum() / _normalizer(normalizer, chosen_rewards)


def batch_normalizer(*, weights: Float[Tensor, " pairs"], normalization: Literal["pairs", "weights"]) -> float:
    """N of a global batch: its number of pairs, or the sum of their weights.

    Raises:
        ValueError: there is no pair, or all weights are zero under `weights`.
    """
    normalizer = float(len(weights)) if normalization == "pairs" else float(weights.double().sum())
    if not normalizer > 0:
        raise ValueError(
            f"a batch of {len(weights)} pairs with weights summing to {float(weights.sum())} has no mean loss"
        )
    return normalizer


def _check_shapes(chosen_rewards: Tensor, rejected_rewards: Tensor, weights: Tensor) -> None:
    if not chosen_rewards.shape == rejected_rewards.shape == weights.shape:
        raise ValueError(
            f"expected equal shapes, got chosen {tuple(chosen_rewards.shape)}, "
            f"rejected {tuple(rejected_rewards.shape)}, weights {tuple(weights.shape)}"
        )


def _normalizer(normalizer: float | None, rewards: Tensor) -> float:
    value = max(len(rewards), 1) if normalizer is None else normalizer
    if not value > 0:
        raise ValueError(f"the normalizer must be positive, got {value}")
    return value
