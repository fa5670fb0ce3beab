"""How much of a reward model is a taste for length."""

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

Array = np.ndarray


def length_correlation(margins: Float[Array, " pairs"], length_differences: Int[Array, " pairs"]) -> float:
    """Spearman's rank correlation of reward and length within pairs, in [-1, 1]: is the longer response the dearer one?

    Every pair counts both ways round, so that neither the context nor which response was chosen has a part in it.

    Args:
        margins: reward of one response minus that of the other.
        length_differences: the same difference of their lengths.

    Returns:
        NaN where all rewards, or all lengths, are equal within pairs, or there is no pair.

    Raises:
        ValueError: the arrays' sizes differ, or a margin is NaN.
    """
    if len(margins) != len(length_differences):
        raise ValueError(f"{len(margins)} margins, {len(length_differences)} length differences")
    if np.isnan(margins).any():
        raise ValueError(f"{int(np.isnan(margins).sum())} of {len(margins)} margins are NaN")
    if not np.any(margins) or not np.any(length_differences):
        return float("nan")
    margins_both_ways = np.concatenate([margins, -margins])
    differences_both_ways = np.concatenate([length_differences, -length_differences])
    return float(stats.spearmanr(margins_both_ways, differences_both_ways).statistic)


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
