"""A training's pairs, from the run directory to formatted items."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray.artifacts import RunDirectory
from scpo_ray.formatting import Formatter
from scpo_ray.training.batches import Preference, PreferenceSet
from scpo_ray.training.task import TrainingTask


def load_preferences(task: TrainingTask, formatter: Formatter, *, split: str) -> PreferenceSet | None:
    """The task's pairs of one split, formatted; None where there are none.

    Training pairs are those that the decisions keep, with their weights. Validation pairs are all of the communities',
    with weight 1: what is to be predicted does not depend on the strategy.
    """
    return load_pairs_of(task, formatter, task.communities, split=split)


def load_pairs_of(
    task: TrainingTask, formatter: Formatter, communities: Sequence[str], *, split: str
) -> PreferenceSet | None:
    """`load_preferences` for other communities than the task's."""
    run = RunDirectory(task.run_address)
    is_of_task = pc.field("community").isin(list(communities)) & (pc.field("split") == split)
    pairs = run.read_table("prepared/pairs.parquet", filters=is_of_task)
    weights: dict[str, float] | None = None
    if task.decisions is not None and split == "train":
        kept = run.read_table(task.decisions, columns=["pair_id", "weight"], filters=is_of_task & pc.field("kept"))
        weights = dict(zip(kept["pair_id"].to_pylist(), kept["weight"].to_pylist(), strict=True))
        pairs = pairs.filter(pc.is_in(pairs["pair_id"], kept["pair_id"].combine_chunks()))
    if not len(pairs):
        return None
    pairs = pairs.sort_by("pair_id")
    identifiers = pa.array(sorted({*pairs["chosen_id"].to_pylist(), *pairs["rejected_id"].to_pylist()}))
    responses = run.read_table(
        "prepared/responses.parquet",
        columns=["response_id", "context", "response"],
        filters=pc.field("response_id").isin(identifiers),
    ).sort_by("response_id")
    position = {identifier: index for index, identifier in enumerate(responses["response_id"].to_pylist())}
    sequences = formatter.format(responses["context"].to_pylist(), responses["response"].to_pylist())
    preferences = [_preference(row, position, weights) for row in pairs.to_pylist()]
    return PreferenceSet(sequences, preferences, batching=task.config.batching)


def _preference(row: dict, position: dict[str, int], weights: dict[str, float] | None) -> Preference:
    has_scores = row["score_chosen"] is not None and row["score_rejected"] is not None
    return Preference(
        interaction_id=row["interaction_id"],
        prompt_id=row["prompt_id"],
        chosen=position[row["chosen_id"]],
        rejected=position[row["rejected_id"]],
        weight=1.0 if weights is None else weights[row["pair_id"]],
        score_gap=row["score_chosen"] - row["score_rejected"] if has_scores else 0.0,
    )
