"""Control: SCPO, and a share of the pairs that its filter drops, so that agreement is not unlearned."""

import numpy as np

from scpo_ray.config import SelectConfig
from scpo_ray.strategies.selection import filter_weight
from scpo_ray.strategies.selection.base import Decision, PairView


def decide(pairs: PairView, config: SelectConfig) -> Decision:
    """SCPO's decision, and of the others those whose lot is below `keep_fraction`, at weight 1."""
    scpo = filter_weight.decide(pairs, config)
    drawn = ~scpo.kept & (pairs.lot < config.keep_fraction)
    reasons = np.where(drawn, "kept: drawn among those that agree", np.asarray(scpo.reason, dtype=object)).tolist()
    return Decision(scpo.kept | drawn, np.where(drawn, 1.0, scpo.weight), reasons)
