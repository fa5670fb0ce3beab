"""How much of a reward model is a taste for length."""

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

Array = np.ndarray


def length_correlation(rewards: Float[Array, " responses"], lengths: Int[Array, " responses"]) -> float:
    """Spearman's rank correlation of reward and length, in [-1, 1]; NaN where either is constant or fewer than two.

    Raises:
        ValueError: lengths of the arrays differ, or a reward is NaN.
    """
    if len(rewards) != len(lengths):
        raise ValueError(f"{len(rewards)} rewards, {len(lengths)} lengths")
    if np.isnan(rewards).any():
        raise ValueError(f"{int(np.isnan(rewards).sum())} of {len(rewards)} rewards are NaN")
    if len(rewards) < 2 or np.ptp(rewards) == 0 or np.ptp(lengths) == 0:
        return float("nan")
    return float(stats.spearmanr(rewards, lengths).statistic)


def matched_length_mask(
    *, chosen_lengths: Int[Array, " pairs"], rejected_lengths: Int[Array, " pairs"], tolerance: float = 0.1
) -> Array:
    """True where the two responses' lengths differ by at most `tolerance` of the longer one: length cannot decide there.

    Raises:
        ValueError: shapes differ.
    """
    if chosen_lengths.shape != rejected_lengths.shape:
        raise ValueError(f"expected equal shapes, got chosen {chosen_lengths.shape}, rejected {rejected_lengths.shape}")
    longer = np.maximum(chosen_lengths, rejected_lengths)
    matched: Array = np.abs(chosen_lengths - rejected_lengths) <= tolerance * longer
    return matched


def longer_is_chosen(*, chosen_lengths: Int[Array, " pairs"], rejected_lengths: Int[Array, " pairs"]) -> Array:
    """1 where the chosen response is the longer one, 0 where the shorter, 0.5 where equal: the accuracy of "longer wins"."""
    return np.where(chosen_lengths == rejected_lengths, 0.5, (chosen_lengths > rejected_lengths).astype(np.float64))
