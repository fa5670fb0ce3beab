"""What one training is: picklable, so that a queue can hand it to any worker group. Imports no model library."""

from dataclasses import dataclass, field
from pathlib import Path

from scpo_ray.artifacts import Recipe, content_hash_of
from scpo_ray.config import FormatConfig, OptimizationConfig
from scpo_ray.errors import TrainingError


@dataclass(frozen=True)
class StartModel:
    """Where training starts."""

    address: str
    """Folder, `package:` address or hub name."""

    new_head_seed: int | None = None
    """Draws a head for a backbone that has none."""


@dataclass(frozen=True)
class Watch:
    """Whose validation pairs a training is watched on. One that is watched leaves observations and no artifact."""

    majority: tuple[str, ...]
    """Beside the task's own communities."""
    num_parts: int = 1
    """It is watched after each of so many equal parts of its steps: at the same part, trainings of different data can be
    compared."""


@dataclass(frozen=True)
class Observation:
    """A model in training, on validation pairs: reward margins r⁺ - r⁻ in the order of the pairs' ids."""

    step: int
    part: int
    """How many of the watch's parts are done."""
    own: tuple[float, ...]
    majority: tuple[float, ...]


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

    num_items: int | None = None
    """Items (of `config.batching`) of which `epochs` passes make the number of steps; those trained on when unset."""

    card: dict[str, object] = field(default_factory=dict)
    """What the model card says about the data."""

    watch: Watch | None = None
    """A trial of a search, not a model to keep."""

    @property
    def name(self) -> str:
        """For people: `global`, or STRATEGY/COMMUNITY."""
        return str(self.card.get("name", self.recipe.name))


@dataclass(frozen=True)
class StepReport:
    """Where a training stands after an optimiser step."""

    step: int
    num_steps: int
    loss: float
    """Of this step, nats per pair."""
    margin: float
    """Mean reward of this step's chosen responses over the rejected ones."""
    num_pairs: int
    """Seen since the training began or was resumed, like the tokens; repetitions counted."""
    num_tokens: int
    num_padded_tokens: int


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


def checkpoint_folder(task: TrainingTask) -> Path:
    """Where an unfinished training is kept."""
    return checkpoints_of(task.recipe, "checkpoints", run_address=task.run_address, place=task.config.checkpoint_dir)


def ranks_of(folder: Path) -> tuple[Path, int] | None:
    """The newest checkpoint of an unfinished training, and how many ranks wrote it; None where there is none."""
    found = sorted(folder.glob("step_*")) if folder.is_dir() else []
    return (found[-1], len(list(found[-1].glob("rank_*.pt")))) if found else None


def refuse_other_ranks(folder: Path, num_ranks: int, setting: str, *, zero_stage: int) -> None:
    """Of the newest checkpoint in a folder: every rank of ZeRO stage 0 holds all of it, of the others a part.

    Raises:
        TrainingError: another number of ranks wrote it.
    """
    found = ranks_of(folder)
    if found is not None and found[1] != num_ranks and zero_stage > 0:
        raise TrainingError(
            f"{found[0]}: written by {found[1]} workers, {setting} is {num_ranks}, and a checkpoint of ZeRO stage "
            f"{zero_stage} is read by as many as wrote it; set {setting} to {found[1]}, or delete the folder to begin again"
        )


def checkpoints_of(recipe: Recipe, folder: str, *, run_address: str, place: str | None) -> Path:
    """In `place`, or in a folder of the run directory; the last part is a digest of the recipe."""
    digest = content_hash_of(recipe.name, dict(recipe.identity), dict(recipe.inputs))[:16]
    return Path(place or f"{run_address}/{folder}").absolute() / digest
