"""What one arm's model (or the mean of its replicates) does on its community's and the majority's pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from scpo_ray.config import EvaluateConfig
from scpo_ray.core import calibration, length
from scpo_ray.core.bootstrap import Estimate, cluster_bootstrap_difference, cluster_bootstrap_mean
from scpo_ray.evaluation.pairs import PairSet

METRICS = pa.schema(
    [
        ("arm", pa.string()),  # global, or the arm's name
        ("community", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),  # mean over replicates
        ("low", pa.float64()),  # 95%, BCa, clustered by annotator, else by prompt group
        ("high", pa.float64()),
        ("num_pairs", pa.int64()),
        ("num_clusters", pa.int64()),
        ("num_seeds", pa.int64()),
        ("seed_sd", pa.float64()),  # standard deviation over replicates; null with one
    ]
)

DIAGNOSTICS = pa.schema(
    [
        ("arm", pa.string()),
        ("community", pa.string()),
        ("replicate", pa.int64()),
        ("measure", pa.string()),
        ("value", pa.float64()),
    ]
)


class Measurer:
    """Estimates on one community's pairs beside the majority's; the global model's rows come from the same code."""

    def __init__(self, own: PairSet, majority: PairSet, config: EvaluateConfig, *, seed: int) -> None:
        self.own, self.majority = own, majority
        self._config, self._seed = config, seed

    def rows(
        self,
        arm: str,
        *,
        own: Sequence[np.ndarray],
        majority: Sequence[np.ndarray],
        full: Sequence[np.ndarray] | None = None,
    ) -> list[dict]:
        """Rows of METRICS. Args: own, majority: correctness per pair, one array per replicate; full: full fine-tuning's own."""
        found = [*self._parts(self.own, own), *self._part(self.majority, majority, None, "majority")]
        if full is not None:
            beside = [values - np.mean(full, axis=0) for values in own]
            found += self._part(self.own, beside, None, "overall_beside_full")
        if arm != "global":
            found += self._gains(self.own, own, "overall_gain")
            found += self._gains(self.majority, majority, "majority_gain")
        return [{"arm": arm, "community": self.own.name, **row} for row in found]

    def _parts(self, pairs: PairSet, correct: Sequence[np.ndarray]) -> Iterator[dict]:
        is_wrong = pairs.global_is_wrong(self._config.test_threshold)
        chosen, rejected = pairs.lengths
        matched = length.matched_length_mask(chosen_lengths=chosen, rejected_lengths=rejected)
        parts = (("overall", None), ("acquisition", is_wrong), ("retention", ~is_wrong), ("matched_length", matched))
        for metric, mask in parts:
            yield from self._part(pairs, correct, mask, metric)
        if is_wrong.any() and (~is_wrong).any():
            yield self._balanced(pairs, correct, is_wrong)

    def _balanced(self, pairs: PairSet, correct: Sequence[np.ndarray], is_wrong: np.ndarray) -> dict:
        """The mean of acquisition and retention: flipping every prediction raises the one and ruins the other.

        It is (1 + x) / 2 with x = acquisition - (1 - retention), a difference of two means over common clusters.
        """
        mean = np.mean(correct, axis=0)
        difference = cluster_bootstrap_difference(
            mean[is_wrong],
            1 - mean[~is_wrong],
            first_clusters=pairs.cluster_codes[is_wrong],
            second_clusters=pairs.cluster_codes[~is_wrong],
            num_resamples=self._config.num_resamples,
            seed=self._seed,
        )
        value, low, high = ((1 + number) / 2 for number in (difference.value, difference.low, difference.high))
        estimate = Estimate(value, low, high, len(pairs), len(np.unique(pairs.cluster_codes)))
        means = [float(values[is_wrong].mean() + values[~is_wrong].mean()) / 2 for values in correct]
        return _row("balanced", estimate, means)

    def _gains(self, pairs: PairSet, correct: Sequence[np.ndarray], metric: str) -> list[dict]:
        return self._part(pairs, [values - pairs.global_correct for values in correct], None, metric)

    def _part(
        self, pairs: PairSet, replicates: Sequence[np.ndarray], mask: np.ndarray | None, metric: str
    ) -> list[dict]:
        """One row: each pair's mean over replicates carries the sample's noise, the replicates' means the seeds'."""
        estimate = self.estimate(pairs, np.mean(replicates, axis=0), mask)
        means = [
            float(np.mean(values if mask is None else values[mask])) for values in replicates if estimate.num_pairs
        ]
        return [_row(metric, estimate, means, num_seeds=len(replicates))]

    def estimate(self, pairs: PairSet, values: np.ndarray, mask: np.ndarray | None = None) -> Estimate:
        """Mean and clustered interval."""
        return cluster_bootstrap_mean(
            values, clusters=pairs.cluster_codes, num_resamples=self._config.num_resamples, seed=self._seed, mask=mask
        )


def _row(metric: str, estimate: Estimate, means: Sequence[float], *, num_seeds: int | None = None) -> dict:
    return {
        "metric": metric,
        **asdict(estimate),
        "num_seeds": len(means) if num_seeds is None else num_seeds,
        "seed_sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
    }


def diagnostics(test: PairSet, validation: PairSet | None, scores: pa.Table) -> dict[str, float]:
    """Calibration and length of one model: what an accuracy does not show.

    The temperature is fitted on validation pairs; NaN without them.
    """
    margins = test.margins(scores)
    temperature = float("nan")
    if validation is not None and len(validation):
        temperature = calibration.fit_temperature(validation.margins(scores))
    chosen, rejected = test.lengths
    return {
        "mean_margin": float(margins.mean()) if len(margins) else float("nan"),
        "share_of_ties": float((margins == 0).mean()) if len(margins) else float("nan"),
        "truncated_share": test.truncated_share(scores),
        "calibration_error": calibration.expected_calibration_error(margins),
        "adaptive_calibration_error": calibration.expected_calibration_error(margins, bins="mass"),
        "temperature": temperature,
        "calibration_error_at_temperature": calibration.expected_calibration_error(margins / temperature)
        if np.isfinite(temperature)
        else float("nan"),
        "length_correlation": length.length_correlation(margins, chosen - rejected),
    }


def longer_wins(test: PairSet) -> float:
    """Accuracy of preferring the longer response; NaN without pairs."""
    chosen, rejected = test.lengths
    values = length.longer_is_chosen(chosen_lengths=chosen, rejected_lengths=rejected)
    return float(values.mean()) if len(values) else float("nan")
