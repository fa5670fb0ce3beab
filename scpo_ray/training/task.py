"""What one training is: picklable, so that a queue can hand it to any worker group. Imports no model library."""

import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from scpo_ray.artifacts import Recipe, content_hash_of
from scpo_ray.config import FormatConfig, OptimizationConfig
from scpo_ray.errors import ConfigError, TrainingError

ZERO_STAGE_FILE = "zero_stage"
"""In a checkpoint: under which it was written."""


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


@dataclass(frozen=True)
class FoundCheckpoint:
    """One of an unfinished training, and who wrote it."""

    folder: Path
    num_ranks: int
    zero_stage: int


def newest_checkpoint(folder: Path) -> FoundCheckpoint | None:
    """None where there is none."""
    found = max(folder.glob("step_*"), default=None) if folder.is_dir() else None
    return None if found is None else checkpoint_in(found)


def checkpoint_in(folder: Path) -> FoundCheckpoint:
    """What a folder `step_N` holds.

    Raises:
        TrainingError: it does not say its ZeRO stage.
    """
    try:
        stage = int((folder / ZERO_STAGE_FILE).read_text())
    except (FileNotFoundError, ValueError):
        raise TrainingError(
            f"{folder}: does not say its ZeRO stage, so it is damaged or of an earlier release; delete it to begin again"
        ) from None
    return FoundCheckpoint(folder, len(list(folder.glob("rank_*.pt"))), stage)


def refuse_other_layout(
    found: FoundCheckpoint | None,
    num_ranks: int,
    zero_stage: int,
    *,
    section: str = "",
    ranks: str = "num_workers",
    is_elastic: bool,
) -> None:
    """Before it is read.

    Args:
        section: of the settings, with its point, for the message.
        ranks: the setting of their number.
        is_elastic: under ZeRO stage 0, where every rank holds everything, any number of ranks may go on.

    Raises:
        TrainingError: another ZeRO stage wrote it, or another number of ranks.
    """
    if found is None:
        return
    again = "or delete the folder to begin again"
    if found.zero_stage != zero_stage:
        raise TrainingError(
            f"{found.folder}: written under ZeRO stage {found.zero_stage}, {section}zero_stage is {zero_stage}; set it to "
            f"{found.zero_stage}, {again}"
        )
    if found.num_ranks != num_ranks and not (is_elastic and zero_stage == 0):
        raise TrainingError(
            f"{found.folder}: written by {found.num_ranks} ranks, {section}{ranks} is {num_ranks}, and this checkpoint (ZeRO "
            f"stage {zero_stage}) is read by as many as wrote it; set {section}{ranks} to {found.num_ranks}, {again}"
        )


def check_checkpoint_dir(run_dir: str, checkpoint_dir: str | None, section: str) -> None:
    """Refuse, before anything starts, a run on an object store without a disk for unfinished trainings.

    Raises:
        ConfigError: `run_dir` is not a path and the section names no `checkpoint_dir`.
    """
    if "://" in run_dir and checkpoint_dir is None:
        raise ConfigError(
            f"{section}.checkpoint_dir: unset, and run_dir {run_dir} is no path; name a folder on a disk that all workers share"
        )


def checkpoints_of(recipe: Recipe, folder: str, *, run_address: str, place: str | None) -> Path:
    """In `place`, or in a folder of the run directory; the last part says what is made (in `place`, of which run), and by which
    recipe."""
    digest = content_hash_of(dict(recipe.identity), dict(recipe.inputs))[:12]
    return Path(f"{_checkpoints_of_artifact(recipe.name, folder, run_address, place)}-{digest}")


def remove_checkpoints(name: str, folder: str, *, run_address: str, place: str | None) -> None:
    """Remove what trainings of an artifact left, by whatever recipes, once it is there; arguments as of `checkpoints_of`."""
    made = _checkpoints_of_artifact(name, folder, run_address, place)
    for path in made.parent.glob(f"{made.name}-*"):
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):  # not there, or not empty: other artifacts are in the making
        made.parent.rmdir()


def _checkpoints_of_artifact(name: str, folder: str, run_address: str, place: str | None) -> Path:
    return (
        Path(place or f"{run_address}/{folder}").absolute() / content_hash_of(name, run_address if place else "")[:12]
    )
