"""Filter (F): keep the pairs on which the global model does not agree, all with weight 1."""

import numpy as np

from scpo_ray.config import SelectConfig
from scpo_ray.core.agreement import disagreement_mask
from scpo_ray.strategies.selection.base import Decision, PairView, threshold_reasons


def decide(pairs: PairView, config: SelectConfig) -> Decision:
    """kept = p < τ, w = 1."""
    kept = disagreement_mask(agreement=pairs.agreement, threshold=config.agreement_threshold)
    return Decision(kept, kept.astype(np.float64), threshold_reasons(kept, pairs.agreement))
