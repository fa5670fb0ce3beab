"""How far each community is from the majority, as the global model measures it: before any community's model exists."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from scpo_ray.config import EvaluateConfig
from scpo_ray.core.bootstrap import cluster_bootstrap_difference
from scpo_ray.evaluation.pairs import PairSet

DISTANCES = pa.schema(
    [
        ("community", pa.string()),
        (
            "value",
            pa.float64(),
        ),  # the global model's accuracy on the majority's test pairs minus that on the community's
        ("low", pa.float64()),  # 95%, BCa, clustered
        ("high", pa.float64()),
        ("num_pairs", pa.int64()),  # of the community
        ("num_clusters", pa.int64()),
    ]
)


def distance_rows(test: Mapping[str, PairSet], majority: PairSet, config: EvaluateConfig, *, seed: int) -> list[dict]:
    """Rows of DISTANCES for every community outside the majority.

    A global model that learned the majority's preferences fails where a community's differ, and where its annotators
    contradict each other; the two cannot be told apart here.
    """
    inside = set(majority.table["community"].to_pylist())
    rows = []
    for community, pairs in test.items():
        if community in inside:
            continue
        estimate = cluster_bootstrap_difference(
            majority.global_correct,
            pairs.global_correct,
            first_clusters=majority.clusters,
            second_clusters=pairs.clusters,
            num_resamples=config.num_resamples,
            seed=seed,
        )
        rows.append(
            {"community": community, "value": estimate.value, "low": estimate.low, "high": estimate.high}
            | {"num_pairs": len(pairs), "num_clusters": len(np.unique(pairs.cluster_codes))}
        )
    return rows
