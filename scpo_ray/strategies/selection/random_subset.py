"""Control: as many pairs as the filter keeps, drawn by chance. What a method gains over it, it gains by what it selects."""

import numpy as np

from scpo_ray.config import SelectConfig
from scpo_ray.strategies.selection import filter_only
from scpo_ray.strategies.selection.base import Decision, PairView


def decide(pairs: PairView, config: SelectConfig) -> Decision:
    """The pairs with the smallest lots, every weight 1."""
    size = int(filter_only.decide(pairs, config).kept.sum())
    kept = np.zeros(len(pairs.lot), dtype=bool)
    kept[np.argsort(pairs.lot, kind="stable")[:size]] = True
    reasons = np.where(kept, "kept: drawn by chance", "dropped: not drawn").tolist()
    return Decision(kept, kept.astype(np.float64), reasons)
