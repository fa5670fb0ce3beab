"""Weighting (W): keep every pair, lighter the further the global model disagrees."""

import numpy as np

from scpo_ray.config import SelectConfig
from scpo_ray.core.agreement import preference_weight
from scpo_ray.strategies.selection.base import Decision, PairView


def decide(pairs: PairView, config: SelectConfig) -> Decision:
    """w = min(exp((r⁺ - r⁻) / β), 1)."""
    weight = preference_weight(
        chosen_rewards=pairs.chosen_rewards,
        rejected_rewards=pairs.rejected_rewards,
        temperature=config.weight_temperature,
    )
    reason = ["kept: full weight" if full else "kept: lighter, the global model disagrees" for full in weight == 1]
    return Decision(np.ones(len(weight), dtype=bool), weight, reason)
