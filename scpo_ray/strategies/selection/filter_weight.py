"""SCPO (F+W): keep the pairs on which the global model does not agree, lighter the further it disagrees."""

import numpy as np

from scpo_ray.config import SelectConfig
from scpo_ray.strategies.selection import filter_only, weight_only
from scpo_ray.strategies.selection.base import Decision, PairView


def decide(pairs: PairView, config: SelectConfig) -> Decision:
    """kept = p < τ, w = min(exp((r⁺ - r⁻) / β), 1)."""
    filtered = filter_only.decide(pairs, config)
    weight = np.where(filtered.kept, weight_only.decide(pairs, config).weight, 0.0)
    return Decision(filtered.kept, weight, filtered.reason)
