"""One reward model per community and strategy, all in one Ray Train job."""

import math
from dataclasses import dataclass, field

import pyarrow.compute as pc

from scpo_ray.artifacts import Manifest, Recipe, RunDirectory
from scpo_ray.config import Arm, Config
from scpo_ray.errors import DataError, ScpoError, TrainingError
from scpo_ray.records import ModelName
from scpo_ray.runtime import Bar, connect, progress_bar
from scpo_ray.stages import asked, recipes
from scpo_ray.stages.global_model import global_model_address
from scpo_ray.stages.prepare import check_known
from scpo_ray.stages.turns import turn
from scpo_ray.training.model_card import licence_of
from scpo_ray.training.queue import TaskState
from scpo_ray.training.task import StartModel, TrainingTask, check_checkpoint_dir, remove_checkpoints
from scpo_ray.training.workers import run_tasks


@dataclass(frozen=True)
class TrainOutcome:
    """What the stage leaves: the models' manifests, and why others failed."""

    trained: dict[ModelName, Manifest] = field(default_factory=dict)
    failed: dict[ModelName, str] = field(default_factory=dict)
    made: set[ModelName] = field(default_factory=set)
    """Those of `trained` that this call trained; the others were there."""


def run(config: Config) -> TrainOutcome:
    """Train what is not trained yet. A community that fails is reported; the others finish. Another job in it is waited for.

    Raises:
        ConfigError: a configured community does not occur.
        TrainingError: the cluster cannot hold the workers, or a worker group failed for good.
    """
    directory = RunDirectory(config.run_dir)
    check_checkpoint_dir(config.run_dir, config.train.checkpoint_dir, "train")
    communities = communities_to_train(config, directory)
    with turn(directory, "train", config.train.checkpoint_dir, of=communities):
        return _make(config, directory)


def _make(config: Config, directory: RunDirectory) -> TrainOutcome:
    tasks, outcome = plan(config, directory)
    _write_state(config, directory, outcome)
    if tasks:
        connect(config.log_format)
        with progress_bar("train", unit="steps", run=directory.absolute_address) as bar:
            state = run_tasks(
                list(tasks.values()),
                config.train,
                num_groups=config.train.num_worker_groups,
                on_progress=lambda state: show_progress(bar, state),
            )
        for name, task in tasks.items():
            if task.name in state.finished:
                outcome.trained[name] = directory.require(task.recipe.name, job="train")
                outcome.made.add(name)
            else:
                outcome.failed[name] = state.failed[task.name]
        _write_state(config, directory, outcome)
    address, place = directory.absolute_address, config.train.checkpoint_dir
    for manifest in outcome.trained.values():  # those of settings that were given up, and of a job killed at the end
        remove_checkpoints(manifest.name, "checkpoints", run_address=address, place=place)
    return outcome


def _write_state(config: Config, directory: RunDirectory, outcome: TrainOutcome) -> None:
    failed = {recipes.model_folder(config, name): reason for name, reason in outcome.failed.items()}
    wanted = [recipes.model_folder(config, name) for _, name in model_names(config, directory)]
    adds = config.train.communities is not None
    asked.write(directory, "train", wanted, failed, checkpoint_dir=config.train.checkpoint_dir, adds=adds)


def run_job(config: Config) -> str:
    """`run`, for the command line: one line per model.

    Raises:
        TrainingError: communities failed; the message has their reasons.
    """
    outcome = run(config)
    if outcome.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in outcome.failed.items())
        raise TrainingError(
            f"{len(outcome.failed)} of {len(outcome.failed) + len(outcome.trained)} not trained: {reasons}"
        )
    return "\n".join(str(manifest) for manifest in outcome.trained.values())


def communities_to_train(config: Config, directory: RunDirectory) -> list[str]:
    """`train.communities`, or every community with pairs beside the majority and the general preferences.

    Raises:
        ConfigError: one of them has no pairs.
    """
    if config.train.communities is not None:
        pairs = directory.read_table("prepared/pairs.parquet", columns=["community"])
        check_known("train.communities", config.train.communities, pairs["community"].to_pylist())
        return list(config.train.communities)
    statistics = recipes.checked(directory, recipes.prepared(config)).statistics
    known, majority = statistics["communities"], statistics["majority"]
    assert isinstance(known, dict) and isinstance(majority, list)
    return [name for name in known if name not in (*majority, config.prepare.general_preferences.community)]


def model_names(config: Config, directory: RunDirectory) -> list[tuple[Arm, ModelName]]:
    """Every reward model that the config asks for, the main strategy's first; a curve's points have one seed each."""
    communities = communities_to_train(config, directory)
    return [
        (arm, ModelName(arm.name, community, replicate))
        for replicate in range(config.train.num_seeds)
        for arm in config.select.arms
        if replicate == 0 or arm.name in config.select.strategies
        for community in communities
    ]


def load_trained(config: Config, directory: RunDirectory) -> dict[ModelName, Manifest]:
    """The reward models that exist for this config.

    Raises:
        ArtifactError: one was made by another config.
    """
    found = {}
    for arm, name in model_names(config, directory):
        recipe = recipes.reward_model(config, directory, arm, name)
        if directory.find(recipe.name) is not None:
            found[name] = recipes.checked(directory, recipe)
    return found


def show_progress(bar: Bar, state: TaskState) -> None:
    """One line per training, with its loss."""
    bar.told.measure(
        {"queue_depth": state.num_waiting, "trainings_failed": len(state.failed), "deaths_total": state.num_deaths}
    )
    for name, report in state.progress.items():
        measures = {
            "loss": report.loss,
            "margin": report.margin,
            "pairs_total": report.num_pairs,
            "tokens_total": report.num_tokens,
            "padded_tokens_total": report.num_padded_tokens,
        }
        bar.update(
            report.step,
            report.num_steps,
            name=name,
            note=f"loss {report.loss:.3f}",
            community=state.communities.get(name, ""),
            measures=measures,
        )


def plan(config: Config, directory: RunDirectory) -> tuple[dict[ModelName, TrainingTask], TrainOutcome]:
    """Tasks for what is missing; communities with too few kept pairs fail here, before any worker starts."""
    tasks: dict[ModelName, TrainingTask] = {}
    outcome = TrainOutcome()
    for arm, name in model_names(config, directory):
        decided = recipes.checked(directory, recipes.decisions(config, directory, arm)).statistics["communities"]
        assert isinstance(decided, dict)
        recipe = recipes.reward_model(config, directory, arm, name)
        made = recipe.is_made(directory, rebuild=config.rebuild)
        if made is not None:
            outcome.trained[name] = made
            continue
        directory.remove(recipe.name)  # a stale model, which `rebuild` allows to go, must not outlive a failure
        try:
            check_enough(
                name.community,
                decided[name.community]["num_kept"],
                config.for_community(name.community).train.min_pairs,
            )
        except ScpoError as error:
            outcome.failed[name] = str(error)
            continue
        tasks[name] = _task(config, directory, recipe, arm, name, decided[name.community])
    return tasks, outcome


def check_enough(community: str, num_kept: int, min_pairs: int) -> None:
    """Refuse a training set that is too small to mean anything.

    Raises:
        DataError: fewer kept pairs than `train.min_pairs`.
    """
    if num_kept < min_pairs:
        raise DataError(
            f"{community}: {num_kept} training pairs left after selection, train.min_pairs asks for {min_pairs}; raise "
            "select.agreement_threshold, lower train.min_pairs, or drop the community"
        )


def _constants_of(decided: dict) -> dict[str, object]:
    """For the card: τ and β as applied, where the strategy uses them."""
    threshold, temperature = (decided["constants"][name] for name in ("agreement_threshold", "weight_temperature"))
    found: dict[str, object] = {} if threshold is None else {"agreement threshold": threshold}
    if temperature is not None:
        found["weight temperature"] = temperature if math.isfinite(temperature) else "infinite: every weight is 1"
    return found


def _task(
    config: Config, directory: RunDirectory, recipe: Recipe, arm: Arm, name: ModelName, decided: dict
) -> TrainingTask:
    annotators = pc.count_distinct(
        directory.read_table(
            "prepared/pairs.parquet",
            columns=["annotator_id"],
            filters=(pc.field("community") == name.community) & (pc.field("split") == "train"),
        )["annotator_id"]
    ).as_py()
    train = config.for_community(name.community).train
    return TrainingTask(
        recipe=recipe,
        run_address=directory.absolute_address,
        start=StartModel(global_model_address(directory)),
        communities=(name.community,),
        decisions=f"decisions/{arm.name}/decisions.parquet",
        config=train,
        format_config=config.format,
        seed=recipe.seed,
        size=decided["num_kept"],
        num_items=decided["offered"][train.batching] if train.equal_steps else None,
        card={
            "name": str(name),
            "community": name.community,
            "arm": arm.name,
            **_constants_of(decided),
            "start": "the run's global reward model",
            "data": list(config.prepare.datasets),
            "licence of the data": licence_of(config.prepare.datasets),
            "training annotators": annotators or "aggregates, no annotators",
            "effective sample size": decided["effective_sample_size"],
        },
    )
