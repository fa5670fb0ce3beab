"""Searches over hyperparameters: trials on validation pairs, chosen points, and an experiment that can be run."""

import concurrent.futures
import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import ray
import yaml

from scpo_ray.artifacts import Manifest, RunDirectory
from scpo_ray.config import Config, Value
from scpo_ray.errors import TrainingError
from scpo_ray.records import safe_name
from scpo_ray.reporting.numbers import percent
from scpo_ray.runtime import connect
from scpo_ray.stages import preflight, prepare, score, train_global
from scpo_ray.stages.recipes import PREPARED
from scpo_ray.stages.search import Outcome, Search, check_validation
from scpo_ray.stages.train import communities_to_train
from scpo_ray.stages.turns import turn
from scpo_ray.training.queue import start_queue
from scpo_ray.training.task import check_checkpoint_dir
from scpo_ray.training.workers import check_resources, worker_groups
from scpo_ray.tuning.objectives import METRICS
from scpo_ray.tuning.records import TrialRecord
from scpo_ray.tuning.space import check_space, describe

_LONGEST_END_S = 60.0
"""How long worker groups may take to end after the last trial."""


def run(config: Config) -> dict[str, Manifest]:
    """Make what is missing up to the scores, search, write `tune/NAME/result`. What is finished is not repeated.

    Returns:
        Name of the search -> its manifest: one, or with `tune.per_community` one for each community.

    Raises:
        ConfigError: the space names what cannot be searched, or a value that a setting refuses.
        ArtifactError: another search has this name.
        DataError: a community, or the majority, has no validation pairs.
        TrainingError: the cluster cannot hold the workers, or a search has no finished trial; the others are finished.
    """
    check_space(config)
    check_checkpoint_dir(config.run_dir, config.train.checkpoint_dir, "train")
    connect(config.log_format)
    check_resources(config.train, config.train.num_worker_groups)
    directory = RunDirectory(config.run_dir)
    is_prepared = directory.find(PREPARED) is not None
    prepare.run(config)
    check_validation(config, directory)
    if not is_prepared:
        preflight.after_prepare(config, "tune")
    for stage in (train_global, score):
        stage.run(config)
    with turn(directory, "tune", config.train.checkpoint_dir, of=[config.tune.name]):
        Search(config, directory).claim()
        searches = [Search(one, directory) for one in configs_of(config, directory)]
        failures = _run_searches(config, [search for search in searches if not search.is_complete])
        done = [search for search in searches if search.has_result]
        if done:
            write_experiment(config, directory, done)
    if failures:
        raise TrainingError("; ".join(failures))
    return {search.config.tune.name: search.manifest for search in searches}


def _run_searches(config: Config, searches: Sequence[Search]) -> list[str]:
    """Run what is not complete on the same workers, within one time budget; what went wrong, by search."""
    if not searches:
        return []
    failures = []
    place, budget = _notes_folder(config), config.tune.time_budget_s
    for search in searches:
        search.check()
        search.claim()
        search.sweep()
    with _workers(config, max_tasks=sum(search.max_tasks for search in searches)) as queue:
        deadline = math.inf if budget is None else time.monotonic() + budget
        for search in searches:
            try:
                search.run(queue, place, deadline=deadline)
            except TrainingError as error:  # the other communities' searches go on
                failures.append(f"{search.config.tune.name}: {error}")
    for search in searches:
        search.sweep()
    return failures


def configs_of(config: Config, directory: RunDirectory) -> list[Config]:
    """The searches that the config asks for: itself, or one of its kind for each community."""
    if not config.tune.per_community:
        return [config]
    return [
        config.model_copy(
            update={
                "tune": config.tune.model_copy(update={"name": f"{config.tune.name}-{safe_name(community)}"}),
                "train": config.train.model_copy(update={"communities": (community,)}),
            }
        )
        for community in communities_to_train(config, directory)
    ]


def outcomes(config: Config) -> dict[str, Outcome]:
    """Name of the search -> its result, for searches that are complete."""
    directory = RunDirectory(config.run_dir)
    return {one.tune.name: Search(one, directory).outcome() for one in configs_of(config, directory)}


def summary(config: Config) -> str:
    """What was found, for the terminal."""
    directory = RunDirectory(config.run_dir)
    lines = []
    for name, outcome in outcomes(config).items():
        lines.append(f"{name}: {len(outcome.records)} trials, {directory.path(f'tune/{name}/result/tune.html')}")
        lines += [f"  {_line(baseline, record)}" for baseline, record in outcome.baselines.items()]
        lines.append(f"  {_line(f'best ({describe(outcome.best.point)})', outcome.best)}")
        for state, what in (("failed", "failed"), ("interrupted", "interrupted; the same command tries them again")):
            records = [record for record in outcome.records if record.state == state]
            if records:
                lines.append(f"  {len(records)} trials {what}, e.g. ({describe(records[0].point)}): {records[0].error}")
    best = directory.path(f"tune/{config.tune.name}/best.yaml")
    lines.append(f"All on validation pairs. Run the best: python jobs/pipeline.py --config {best} --run_dir NEW")
    return "\n".join(lines)


def write_experiment(config: Config, directory: RunDirectory, searches: Sequence[Search]) -> None:
    """`best.yaml`: what was configured, with the chosen points in it and without the search."""
    stated = config.model_dump(mode="json", exclude_unset=True, exclude={"tune", "run_dir", "rebuild"})
    notes = ["# python jobs/pipeline.py --config best.yaml --run_dir NEW", "#"]
    for search in searches:
        outcome, tune = search.outcome(), search.config.tune
        found = ", ".join(f"{name} {percent(outcome.best.objectives[name])}" for name in tune.objectives)
        chosen = f"the highest {tune.objectives[0]}" if len(tune.objectives) == 1 else f"criterion {tune.criterion}"
        notes.append(f"# {tune.name}: {chosen} of {len(outcome.records)} trials; on validation pairs: {found}")
        if config.tune.per_community:
            (community,) = outcome.best.by_community
            own = stated.setdefault("per_community", {}).setdefault(community, {})
            own |= outcome.best.point
        else:
            for key, value in outcome.best.point.items():
                _put(stated, key, value)
    text = yaml.safe_dump(stated, sort_keys=False, allow_unicode=True, width=120)
    directory.write_file(f"tune/{config.tune.name}/best.yaml", "\n".join([*notes, text]).encode())


def _put(values: dict, key: str, value: Value) -> None:
    *sections, name = key.split(".")
    for part in sections:
        values = values.setdefault(part, {})
    values[name] = value


def _notes_folder(config: Config) -> Path:
    """Where Ray Train and Ray Tune keep notes while the search runs: on a disk, as unfinished trainings are."""
    return Path(config.train.checkpoint_dir or f"{RunDirectory(config.run_dir).absolute_address}/checkpoints")


@contextlib.contextmanager
def _workers(config: Config, *, max_tasks: int) -> Iterator[ray.actor.ActorHandle]:
    """A queue with worker groups behind it, started once for all trials; they have their CPUs before the first begins."""
    num_groups = config.train.num_worker_groups
    queue = start_queue([], config.train.max_failures, num_groups=num_groups, is_open=True)
    place = _notes_folder(config)
    with worker_groups(queue, config.train, num_groups=num_groups, max_tasks=max_tasks, place=place) as futures:
        for group, future in enumerate(futures):
            future.add_done_callback(lambda future, group=group: queue.end_group.remote(group, _end_of(future)))
        try:
            yield queue
        finally:
            ray.get(queue.close.remote())
            concurrent.futures.wait(futures, timeout=_LONGEST_END_S)


def _end_of(future: Future) -> str:
    error = future.exception()
    if error is None:
        return "the worker group has ended"
    return f"the worker group has ended: {(str(error).strip() or type(error).__name__).splitlines()[-1]}"


def _line(name: str, record: TrialRecord) -> str:
    if not record.objectives:
        return f"{name}: {record.state}: {record.error}"
    shown = ", ".join(f"{metric} {percent(record.objectives[metric])}" for metric in METRICS)
    return f"{name}: {shown}"
