"""Communities beside each other: what one's model is worth to another, and whether they differ at all."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray.config import EvaluateConfig
from scpo_ray.core.bootstrap import cluster_bootstrap_mean
from scpo_ray.core.communities import CommunityVariance, Votes, agreement_matrix, community_variance
from scpo_ray.evaluation.pairs import PairSet, sorted_codes

TRANSFER = pa.schema(
    [
        ("model", pa.string()),  # global, or the community whose model of the main arm it is
        ("community", pa.string()),  # whose test pairs
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("num_pairs", pa.int64()),
        ("num_clusters", pa.int64()),
    ]
)


def transfer_rows(
    models: Mapping[str, pa.Table], test: Mapping[str, PairSet], config: EvaluateConfig, *, seed: int
) -> list[dict]:
    """Rows of TRANSFER: accuracy of every model on every community's test pairs."""
    rows = []
    for model, scores in models.items():
        for community, pairs in test.items():
            estimate = cluster_bootstrap_mean(
                pairs.correct(scores), clusters=pairs.cluster_codes, num_resamples=config.num_resamples, seed=seed
            )
            rows.append({"model": model, "community": community, **estimate.__dict__})
    return rows


def votes_of(pairs: pa.Table, communities: Sequence[str]) -> tuple[Votes, bool]:
    """Every pair as a vote on its unordered two responses, and whether there are annotators behind them."""
    sides = sorted_codes(pa.chunked_array([*pairs["chosen_id"].chunks, *pairs["rejected_id"].chunks], pa.string()))
    chosen, rejected = sides[: len(pairs)], sides[len(pairs) :]
    first = chosen < rejected
    items = np.where(first, chosen, rejected) * len(sides) + np.where(first, rejected, chosen)
    community = pc.index_in(pairs["community"], pa.array(communities, pa.string())).to_numpy().astype(np.int64)
    annotators = pairs["annotator_id"].cast(pa.string())  # a column of nothing has no type
    # One for all of a community without them; two of one name in two communities are two.
    named = pc.fill_null(pc.binary_join_element_wise("annotator ", annotators, ""), "community")
    voters = sorted_codes(pc.binary_join_element_wise(named, pairs["community"], " of "))
    votes = Votes(np.unique(items, return_inverse=True)[1], community, voters, first.astype(np.float64))
    return votes, annotators.null_count < len(annotators)


def community_structure(
    pairs: pa.Table, communities: Sequence[str], config: EvaluateConfig, *, seed: int
) -> tuple[dict, CommunityVariance]:
    """Agreement between communities on shared pairs (with the number of shared pairs), and the variance they explain.

    Args:
        pairs: columns community, annotator_id, chosen_id, rejected_id; all splits, for no model is measured.
    """
    votes, has_annotators = votes_of(pairs, communities)
    matrix, shared = agreement_matrix(votes, num_communities=len(communities))
    structure = {
        "communities": list(communities),
        "agreement": [[None if np.isnan(value) else round(float(value), 6) for value in row] for row in matrix],
        "shared_pairs": shared.tolist(),
        "has_annotators": has_annotators,
    }
    return structure, community_variance(votes, num_permutations=config.num_label_permutations, seed=seed)
