"""Accuracy on pairs."""

import numpy as np
from jaxtyping import Float

Array = np.ndarray


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
