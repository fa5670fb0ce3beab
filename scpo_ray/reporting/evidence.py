"""The evaluation's tables beside the headline, as the report reads them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scpo_ray.core.bootstrap import Estimate
from scpo_ray.records import ALL_COMMUNITIES
from scpo_ray.reporting.numbers import points, points_interval


@dataclass(frozen=True)
class CurvePoint:
    """One arm of a curve, over all communities together."""

    arm: str
    line: str
    """Which line it is on: a strategy's name for people."""
    threshold: float
    training_share: float
    num_pairs: int
    """Training pairs, mean over communities."""
    training_flops: float
    """Of all its trainings: 6 x non-embedding parameters x tokens."""
    estimates: Mapping[str, Estimate]
    """By metric."""
    num_seeds: int = 1
    """Trainings that the estimates are means over."""


@dataclass(frozen=True)
class Evidence:
    """What was measured beside each model's own accuracy; rows as in the tables of `scpo_ray.evaluation`."""

    metrics: Sequence[Mapping] = ()
    comparisons: Sequence[Mapping] = ()
    diagnostics: Sequence[Mapping] = ()
    transfer: Sequence[Mapping] = ()
    opinions: Sequence[Mapping] = ()
    distances: Sequence[Mapping] = ()
    planted_distances: Mapping[str, float] = field(default_factory=dict)
    """Community -> what `distances` would be for a perfect model of the majority; where the data knows its truth."""
    calibration: Sequence[Mapping] = ()
    """Bins: community, model, confidence, accuracy, num_pairs."""
    structure: Mapping = field(default_factory=dict)
    """communities, agreement, shared_pairs, has_annotators, variance."""
    curve: Sequence[CurvePoint] = ()

    def pooled(self, arm: str) -> dict[str, Estimate]:
        """An arm over all communities together, by metric; of the one community where there is only one."""
        names = {row["community"] for row in self.metrics}
        wanted = ALL_COMMUNITIES if ALL_COMMUNITIES in names else next(iter(names), None)
        return {
            row["metric"]: estimate_of(row) for row in self.metrics if row["arm"] == arm and row["community"] == wanted
        }

    def against(self, reference: str, *, metric: str, arm: str) -> list[Mapping]:
        """Comparisons of an arm with another by one metric, the pooled one first; turned round where only that was tested."""
        of_metric = [row for row in self.comparisons if row["metric"] == metric]
        rows = [row for row in of_metric if (row["arm"], row["against"]) == (arm, reference)] or [
            _turned(row) for row in of_metric if (row["arm"], row["against"]) == (reference, arm)
        ]
        return sorted(rows, key=lambda row: (row["community"] != ALL_COMMUNITIES, row["community"]))

    def num_against(self, references: Sequence[str], *, arm: str) -> int:
        """How many comparisons with these references there are to show."""
        metrics = ("overall", "majority")
        return sum(len(self.against(name, metric=metric, arm=arm)) for name in references for metric in metrics)

    def worst(self, arm: str) -> tuple[str, float, float] | None:
        """(community, its overall accuracy, how far the best community's is above it); None with fewer than two."""
        found = {
            row["community"]: row["value"]
            for row in self.metrics
            if row["arm"] == arm and row["metric"] == "overall" and row["num_pairs"]
        }
        found.pop(ALL_COMMUNITIES, None)
        if len(found) < 2:
            return None
        name = min(found, key=found.__getitem__)
        return name, found[name], max(found.values()) - found[name]

    @property
    def ties(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(arm, community) -> how many of its models score everything equal, of how many seeds; where any does."""
        found: dict[tuple[str, str], list[bool]] = {}
        for row in self.diagnostics:
            if row["measure"] == "share_of_ties":
                found.setdefault((row["arm"], row["community"]), []).append(row["value"] == 1.0)
        return {key: (sum(tied), len(tied)) for key, tied in found.items() if any(tied)}

    @property
    def most_cut(self) -> float:
        """The largest share of a community's test responses that were cut before the global model scored them."""
        shares = [
            row["value"] for row in self.diagnostics if (row["arm"], row["measure"]) == ("global", "truncated_share")
        ]
        return max((share for share in shares if not math.isnan(share)), default=0.0)

    def seed_sd(self, arm: str) -> float | None:
        """Standard deviation over seeds of the arm's overall accuracy, all communities together."""
        found = [row["seed_sd"] for row in self.metrics if row["arm"] == arm and row["metric"] == "overall"]
        return found[-1] if found else None  # the pooled row is the last one

    def first_diagnostics(self, arms: Sequence[str]) -> list[tuple[str, str, dict[str, float]]]:
        """(community, arm, measures) of the first replicate of each arm."""
        found: dict[tuple[str, str], dict[str, float]] = {}
        for row in self.diagnostics:
            if row["replicate"] == 0 and row["arm"] in arms:
                found.setdefault((row["community"], row["arm"]), {})[row["measure"]] = row["value"]
        order = sorted(found, key=lambda key: (key[0], list(arms).index(key[1])))
        return [(community, arm, found[community, arm]) for community, arm in order]

    @property
    def efficiency(self) -> str:
        """How much of the data, and of the compute, the main strategy needs for what full fine-tuning reaches."""
        full = next((point for point in self.curve if point.arm == "none"), None)
        main = sorted(
            (point for point in self.curve if not point.arm.startswith("none") and "-tau-" not in point.arm),
            key=lambda point: point.training_flops,
        )
        if full is None or not main:
            return ""
        whole = main[-1]
        words = (
            f"{whole.line} trains on {whole.num_pairs / full.num_pairs:.0%} of the pairs of full fine-tuning, at "
            f"{whole.training_flops / full.training_flops:.0%} of its training compute (without scoring the pairs once)."
        )
        if whole.num_seeds != min(point.num_seeds for point in main):
            words += f" Full data: means over {whole.num_seeds} seeds; smaller shares: one seed each."
        measured = [point for point in main if BESIDE_FULL in point.estimates]
        words += " Beside full fine-tuning on all pairs, overall: " + "; ".join(
            f"{_difference(point.estimates[BESIDE_FULL])} with {point.num_pairs:,} pairs per community "
            f"({point.num_pairs / full.num_pairs:.0%}) and {point.training_flops:.1e} FLOP "
            f"({point.training_flops / full.training_flops:.0%})"
            for point in measured
        )
        reached = next((point for point in measured if point.estimates[BESIDE_FULL].low > -_NEAR), None)
        if reached is None:
            return f"{words}. None of them is shown to come within {100 * _NEAR:.0f} points of it (interval)."
        return (
            f"{words}. {reached.num_pairs:,} pairs are shown to come within {100 * _NEAR:.0f} points of it (interval)."
        )

    @property
    def distance_words(self) -> str:
        """Which communities differ from the majority, and by how much, in words."""
        rows = sorted((row for row in self.distances if row["num_pairs"]), key=lambda row: -row["value"])
        if not rows:
            return ""
        clear = [row for row in rows if row["low"] > 0]
        closer = [row["community"] for row in rows if row["high"] < 0]
        rest = [row["community"] for row in rows if row["low"] <= 0 <= row["high"]]
        unknown = [row["community"] for row in rows if math.isnan(row["low"])]
        sentences = [f"The global model is less accurate there than on the majority's test pairs: {_listed(clear)}."]
        if not clear:
            sentences = [
                "For no community is it shown that the global model is less accurate than on the majority's own test pairs."
            ]
        if rest:
            sentences.append(f"No difference is shown for {', '.join(rest)} (interval spans zero).")
        if closer:
            sentences.append(f"It is more accurate for {', '.join(closer)}.")
        if unknown:
            sentences.append(f"Nothing can be said of {', '.join(unknown)} (no interval).")
        if clear:
            sentences.append("Other preferences lower the accuracy, and so do annotators who contradict each other.")
        return " ".join(sentences)

    @property
    def opinion_words(self) -> str:
        """For whom the global model has no opinion: every gain over it is one over options that are all alike."""
        names = [row["community"] for row in self.opinions if row["arm"] == "global" and row["num_at_bound"]]
        if not names:
            return ""
        return (
            f"For {', '.join(names)} no temperature makes the global model's rewards an opinion: its T is at a bound, 100 makes "
            "all options alike, and what is gained on it there is gained on uniform."
        )

    @property
    def variance_words(self) -> str:
        """What the community explains of the votes, in words."""
        variance = self.structure.get("variance", {})
        share = _share(variance)
        if share is None:
            why = "no pair has several votes of two communities, or all votes are alike"
            if not self.structure.get("has_annotators"):
                why = "the data are aggregates without annotators"
            return f"How much the community explains of single votes cannot be told: {why}."
        verdict = "more than chance would" if variance["p_value"] <= 0.05 else "no more than chance might"
        share = max(share, 0.0)  # the estimate of a component may fall below zero, the component cannot
        return (
            f"On pairs that several communities voted on ({variance['num_votes']:,} votes on {variance['num_items']:,} "
            f"pairs), the community explains {100 * share:.1f}% of the variance of votes, {verdict} "
            f"(p = {variance['p_value']:.3f}, annotators' communities exchanged at random); the rest is between annotators "
            "of one community."
        )


BESIDE_FULL = "overall_beside_full"
"""Metric: overall accuracy minus that of full fine-tuning on all pairs, on the same test pairs."""
_NEAR = 0.03
"""Differences of accuracy below which the report calls two arms as good as each other."""


def _difference(estimate: Estimate) -> str:
    return f"{points(estimate.value)} points {points_interval(estimate)}"


def _turned(row: Mapping) -> dict:
    """The same comparison told from the other side."""
    return {
        **row,
        "arm": row["against"],
        "against": row["arm"],
        "difference": -row["difference"],
        "low": -row["high"],
        "high": -row["low"],
    }


def _listed(rows: Sequence[Mapping]) -> str:
    return ", ".join(
        f"{row['community']} by {100 * row['value']:.1f} points [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        for row in rows
    )


def _share(variance: Mapping) -> float | None:
    between, within = variance.get("between"), variance.get("within")
    if between is None or within is None or not between + within:
        return None
    return between / (between + within)


def interval_of(row: Mapping) -> Estimate:
    """A comparison's difference as an estimate."""
    return Estimate(row["difference"], row["low"], row["high"], row["num_pairs"], row["num_clusters"])


def estimate_of(row: Mapping) -> Estimate:
    """A metrics row as an estimate."""
    return Estimate(row["value"], row["low"], row["high"], row["num_pairs"], row["num_clusters"])
