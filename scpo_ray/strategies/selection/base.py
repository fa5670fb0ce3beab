"""What a selection strategy sees and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from scpo_ray.config import SelectConfig


@dataclass(frozen=True)
class PairView:
    """One community's pairs of one split, as the global model sees them."""

    chosen_rewards: Float[np.ndarray, " pairs"]
    rejected_rewards: Float[np.ndarray, " pairs"]
    agreement: Float[np.ndarray, " pairs"]
    lot: Float[np.ndarray, " pairs"]
    """A number in [0, 1) per pair that stands for chance: a hash of pair and seed, the same in every run."""


@dataclass(frozen=True)
class Decision:
    """Per pair: kept or not, its weight (0 where not kept), and why, in words that name the numbers' side."""

    kept: Bool[np.ndarray, " pairs"]
    weight: Float[np.ndarray, " pairs"]
    reason: list[str]


Strategy = Callable[[PairView, SelectConfig], Decision]


def threshold_reasons(kept: Bool[np.ndarray, " pairs"], agreement: Float[np.ndarray, " pairs"]) -> list[str]:
    """The filter's reason for each pair; NaN agreements come from the published form's overflow."""
    dropped = np.where(np.isnan(agreement), "dropped: agreement is not a number", "dropped: the global model agrees")
    return np.where(kept, "kept: agreement below threshold", dropped).tolist()
