"""The evaluation's rows, gathered into one record per trained model."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from scpo_ray.core.bootstrap import Estimate
from scpo_ray.records import ALL_COMMUNITIES

STRATEGY_LABELS = {
    "filter_weight": "SCPO (filter + weight)",
    "filter": "filter only",
    "weight": "weight only",
    "inverse_weight": "inverse weight",
    "none": "full fine-tuning",
    "random": "random subset",
    "uncertainty": "uncertainty band",
    "keep_fraction": "SCPO + some agreement",
    "other_ruler": "SCPO, another ruler",
    "global": "global model",
    "uniform": "uniform",
    "majority": "the majority's answers",
}
NOTHING = Estimate(math.nan, math.nan, math.nan, 0, 0)


@dataclass(frozen=True)
class Kept:
    """What one strategy kept of one community's pairs."""

    train_share: float | None
    test_share: float | None
    num_kept: int
    effective_sample_size: float
    threshold: float | None = None
    """τ as applied; None where the strategy has none."""
    temperature: float | None = None
    """β as applied, infinite where it makes every weight 1; None where the strategy has none."""
    bias: float | None = None
    """`core.selection_rule.bias`; None where it is not known."""
    information: float | None = None


@dataclass(frozen=True)
class ModelResult:
    """One trained model beside the global one, on its community's and the majority's test pairs."""

    community: str
    strategy: str
    trained: Mapping[str, Estimate]
    """By metric: overall, acquisition, retention, majority, and the paired overall_gain and majority_gain."""
    baseline: Mapping[str, Estimate]
    """The global model's own, by metric."""
    kept: Kept | None = None
    cluster_unit: str = "annotators"
    """What the intervals resample: annotators, prompts, or both where only some pairs have an annotator."""
    missing: Estimate = field(default=NOTHING, repr=False)

    @property
    def label(self) -> str:
        """The strategy, for people."""
        return strategy_label(self.strategy)

    def of(self, metric: str) -> Estimate:
        """The trained model's estimate; NaN where it was not measured."""
        return self.trained.get(metric, self.missing)

    def before(self, metric: str) -> Estimate:
        """The global model's estimate; NaN where it was not measured."""
        return self.baseline.get(metric, self.missing)


def strategy_label(strategy: str) -> str:
    """An arm's name for people; its own name when it is not one of ours."""
    name, _, share = strategy.partition("-share-")
    name, _, threshold = name.partition("-tau-")
    label = STRATEGY_LABELS.get(name, name)
    return label + (f", τ = {threshold}" if threshold else "") + (f", {float(share):.0%} of the data" if share else "")


def results_from(
    metrics: Iterable[Mapping],
    *,
    strategies: Sequence[str],
    kept: Mapping[tuple[str, str], Kept],
    cluster_units: Mapping[str, str],
) -> list[ModelResult]:
    """One result per trained model: communities by the first strategy's overall gain, the largest first.

    Args:
        metrics: rows of the evaluation's metrics table.
        strategies: the main one, then the controls.
        kept: by (strategy, community).
        cluster_units: by community.
    """
    estimates = _by_model(metrics)
    results = [
        ModelResult(
            community,
            strategy,
            trained,
            estimates.get(("global", community), {}),
            kept.get((strategy, community)),
            cluster_units.get(community, "annotators"),
        )
        for (strategy, community), trained in estimates.items()
        if strategy in strategies and community != ALL_COMMUNITIES
    ]
    gains = {
        result.community: result.of("overall_gain").value for result in results if result.strategy == strategies[0]
    }
    return sorted(
        results,
        key=lambda result: (
            *_largest_first(gains.get(result.community, math.nan)),
            result.community,
            strategies.index(result.strategy),
        ),
    )


def _by_model(metrics: Iterable[Mapping]) -> dict[tuple[str, str], dict[str, Estimate]]:
    """(arm or `global`, community) -> metric -> estimate."""
    estimates: dict[tuple[str, str], dict[str, Estimate]] = {}
    for row in metrics:
        estimate = Estimate(row["value"], row["low"], row["high"], row["num_pairs"], row["num_clusters"])
        estimates.setdefault((row["arm"], row["community"]), {})[row["metric"]] = estimate
    return estimates


def _largest_first(value: float) -> tuple[bool, float]:
    return math.isnan(value), 0.0 if math.isnan(value) else -value
