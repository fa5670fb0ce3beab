"""What a trial is judged by: accuracies on validation pairs, from margins that a worker observed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from scpo_ray.config import Objective
from scpo_ray.core.accuracy import pair_correctness

METRICS: tuple[Objective, ...] = ("overall", "acquisition", "retention", "balanced", "worst_community", "majority")


@dataclass(frozen=True)
class ValidationPairs:
    """A community's validation pairs as the global model sees them, in the order of the pairs' ids."""

    community: str
    global_is_wrong: Bool[np.ndarray, " pairs"]

    def measure(self, own: Sequence[float], majority: Sequence[float]) -> dict[str, float]:
        """Accuracies of one model; NaN where it has no such pairs.

        Args:
            own: reward margins r⁺ - r⁻ of these pairs.
            majority: those of the majority's.

        Raises:
            ValueError: another number of margins than pairs.
        """
        correct = _correctness(own)
        if len(correct) != len(self.global_is_wrong):
            raise ValueError(f"{self.community}: {len(correct)} margins, {len(self.global_is_wrong)} validation pairs")
        acquisition, retention = (_mean(correct[mask]) for mask in (self.global_is_wrong, ~self.global_is_wrong))
        return {
            "overall": _mean(correct),
            "acquisition": acquisition,
            "retention": retention,
            "balanced": (acquisition + retention) / 2,
            "majority": _mean(_correctness(majority)),
        }


def summarize(by_community: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means over communities, and the lowest overall accuracy among them; NaN where no community has the metric."""
    found = {}
    for metric in METRICS:
        if metric == "worst_community":
            found[metric] = min((row["overall"] for row in by_community.values()), default=float("nan"))
        else:
            values = np.array([row[metric] for row in by_community.values()])
            found[metric] = _mean(values[~np.isnan(values)])
    return found


def _correctness(margins: Sequence[float]) -> Float[np.ndarray, " pairs"]:
    values = np.asarray(margins, dtype=np.float64)
    return pair_correctness(chosen_rewards=values, rejected_rewards=np.zeros_like(values))


def _mean(values: Float[np.ndarray, " values"]) -> float:
    return float(values.mean()) if len(values) else float("nan")
