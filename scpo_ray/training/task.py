"""What one training is: picklable, so that a queue can hand it to any worker group."""

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.config import FormatConfig, OptimizationConfig
from scpo_ray.formatting import Formatter
from scpo_ray.training.batches import Preference, PreferenceSet


@dataclass(frozen=True)
class StartModel:
    """Where training starts."""

    address: str
    """Folder, `package:` address or hub name."""

    new_head_seed: int | None = None
    """Draws a head for a backbone that has none."""


@dataclass(frozen=True)
class TrainingTask:
    """One reward model to train, as an artifact."""

    recipe: Recipe
    run_address: str
    start: StartModel
    communities: tuple[str, ...]
    decisions: str | None
    """Name of the decisions' Parquet file; every training pair with weight 1 when unset."""

    config: OptimizationConfig
    format_config: FormatConfig
    seed: int
    size: int
    """Pairs; the queue hands out the largest first."""

    card: dict[str, object] = field(default_factory=dict)
    """What the model card says about the data."""

    @property
    def name(self) -> str:
        """For people: `global`, or STRATEGY/COMMUNITY."""
        return str(self.card.get("name", self.recipe.name))


@dataclass(frozen=True)
class TrainingSummary:
    """What a finished training says of itself; `losses` has one value per optimiser step, nats per pair."""

    task: str
    num_steps: int
    num_pairs: int
    num_tokens: int
    num_padded_tokens: int
    wall_time_s: float
    losses: list[float]
    validation_losses: list[tuple[int, float]]
    kept_step: int


def load_preferences(task: TrainingTask, formatter: Formatter, *, split: str) -> PreferenceSet | None:
    """The task's pairs of one split, formatted; None where there are none.

    Training pairs are those that the decisions keep, with their weights. Validation pairs are all of the communities',
    with weight 1: what is to be predicted does not depend on the strategy.
    """
    run = RunDirectory(task.run_address)
    is_of_task = pc.field("community").isin(list(task.communities)) & (pc.field("split") == split)
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
        chosen=position[row["chosen_id"]],
        rejected=position[row["rejected_id"]],
        weight=1.0 if weights is None else weights[row["pair_id"]],
        score_gap=row["score_chosen"] - row["score_rejected"] if has_scores else 0.0,
    )
