"""Is one arm better than another? Paired tests over communities, corrected for how many there are."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa

from scpo_ray.config import EvaluateConfig
from scpo_ray.core.bootstrap import cluster_bootstrap_mean
from scpo_ray.core.hypothesis import holm, minimum_detectable_effect, paired_permutation_test
from scpo_ray.evaluation.pairs import PairSet

COMPARISONS = pa.schema(
    [
        ("arm", pa.string()),
        ("against", pa.string()),  # global, or an arm
        ("community", pa.string()),
        ("metric", pa.string()),  # overall, majority
        ("difference", pa.float64()),  # accuracy of the arm minus that of the other, mean over replicates
        ("seed_sd", pa.float64()),  # standard deviation of the difference over replicates; null with one
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("p_value", pa.float64()),  # paired permutation of whole clusters
        (
            "p_holm",
            pa.float64(),
        ),  # over the communities and arms that are compared with the same one by the same metric
        ("detectable", pa.float64()),  # smallest difference found with 80% power at the 5% level
        ("num_pairs", pa.int64()),
        ("num_clusters", pa.int64()),
    ]
)


def compare(
    pairs: PairSet, ours: np.ndarray, theirs: np.ndarray, config: EvaluateConfig, *, seed: int
) -> dict[str, float | int]:
    """Difference of two models' correctness on the same pairs: interval, p-value, what could have been seen."""
    differences = ours - theirs
    estimate = cluster_bootstrap_mean(
        differences, clusters=pairs.cluster_codes, num_resamples=config.num_resamples, seed=seed
    )
    return {
        "difference": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "p_value": paired_permutation_test(
            differences, clusters=pairs.cluster_codes, num_permutations=config.num_permutations, seed=seed
        ),
        "detectable": minimum_detectable_effect(differences, clusters=pairs.cluster_codes),
        "num_pairs": estimate.num_pairs,
        "num_clusters": estimate.num_clusters,
    }


def comparison_rows(
    correct: Mapping[tuple[str, str], Mapping[str, Sequence[np.ndarray]]],
    pairs: Mapping[tuple[str, str], PairSet],
    references: Sequence[str],
    config: EvaluateConfig,
    *,
    seed: int,
) -> list[dict]:
    """Rows of COMPARISONS: every arm against every reference, per community and metric.

    Args:
        correct: (community, metric) -> arm (or `global`) -> correctness per pair, one array for each replicate.
        pairs: (community, metric) -> the pairs that these arrays are about.
        references: the arms to compare with; those that a community lacks are left out.
    """
    rows = []
    for (community, metric), by_arm in correct.items():
        for reference in references:
            for arm in by_arm:
                if arm in (reference, "global") or reference not in by_arm:
                    continue
                of_pair = pairs[community, metric]
                ours, theirs = by_arm[arm], by_arm[reference]
                result = compare(of_pair, np.mean(ours, axis=0), np.mean(theirs, axis=0), config, seed=seed)
                rows.append(
                    {"arm": arm, "against": reference, "community": community, "metric": metric}
                    | {**result, "seed_sd": _seed_sd(ours, theirs)}
                )
    return _with_holm(rows)


def _seed_sd(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float | None:
    """Replicates of the same number share their seed; an arm with one, such as `global`, is the same for all."""
    number = max(len(ours), len(theirs))
    if number < 2 or not len(ours[0]) or {len(ours), len(theirs)} - {1, number}:
        return None
    means = [float(np.mean(ours[n % len(ours)]) - np.mean(theirs[n % len(theirs)])) for n in range(number)]
    return float(np.std(means, ddof=1))


def _with_holm(rows: Sequence[dict]) -> list[dict]:
    def family(row: dict) -> tuple[str, str]:
        return row["against"], row["metric"]

    corrected = []
    for _, group in groupby(sorted(rows, key=family), key=family):
        members = list(group)
        adjusted = holm([row["p_value"] for row in members])
        corrected += [row | {"p_holm": value} for row, value in zip(members, adjusted, strict=True)]
    return corrected
