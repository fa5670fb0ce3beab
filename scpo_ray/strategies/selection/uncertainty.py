"""Control: the pairs of which the global model is least sure, whichever side it takes."""

import numpy as np

from scpo_ray.config import SelectConfig
from scpo_ray.strategies.selection.base import Decision, PairView


def decide(pairs: PairView, config: SelectConfig) -> Decision:
    """kept = |p - 0.5| <= band, every weight 1. NaN is never kept."""
    kept = np.abs(pairs.agreement - 0.5) <= config.uncertainty_band
    reasons = np.where(kept, "kept: the global model is unsure", "dropped: the global model is sure").tolist()
    return Decision(kept, kept.astype(np.float64), reasons)
