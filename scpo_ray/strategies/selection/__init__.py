"""Selection strategies by the name that `select.strategy` uses. A new one is a file here and a line below."""

from scpo_ray.strategies.selection import (
    filter_only,
    filter_weight,
    inverse_weight,
    keep_all,
    keep_fraction,
    random_subset,
    uncertainty,
    weight_only,
)
from scpo_ray.strategies.selection.base import Decision, PairView, Strategy

STRATEGIES: dict[str, Strategy] = {
    "filter_weight": filter_weight.decide,
    "filter": filter_only.decide,
    "weight": weight_only.decide,
    "inverse_weight": inverse_weight.decide,
    "none": keep_all.decide,
    "random": random_subset.decide,
    "uncertainty": uncertainty.decide,
    "keep_fraction": keep_fraction.decide,
    "other_ruler": filter_weight.decide,  # `stages.select` shows it another model's rewards
}

__all__ = ["STRATEGIES", "Decision", "PairView", "Strategy"]
