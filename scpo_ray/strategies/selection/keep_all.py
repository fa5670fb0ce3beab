"""Full fine-tuning, a control: every pair with weight 1."""

import numpy as np

from scpo_ray.config import SelectConfig
from scpo_ray.strategies.selection.base import Decision, PairView


def decide(pairs: PairView, config: SelectConfig) -> Decision:
    """kept = true, w = 1."""
    size = len(pairs.agreement)
    return Decision(np.ones(size, dtype=bool), np.ones(size), ["kept: every pair is"] * size)
