"""Ray Tune and Optuna around trials: which points are tried, in which order, and when a trial is stopped early."""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from scpo_ray.artifacts import content_hash_of
from scpo_ray.config import SearchRange, TuneConfig
from scpo_ray.folders import scratch_folder
from scpo_ray.stages.trial import Trial, TrialInputs
from scpo_ray.tuning.records import TrialRecord, TrialStore
from scpo_ray.tuning.space import Point, grid, random_point

_STUDY = "search"
_FEWEST_FOR_IMPORTANCE = 8
_MOST_DRAWS = 20


def run_trials(
    inputs: TrialInputs,
    config: TuneConfig,
    *,
    num_concurrent: int,
    seed: int,
    place: Path,
    time_s: float | None,
    on_end: Callable[[], None],
) -> bool:
    """Try points until the search has `num_trials` settled records, none is left, or the time is over.

    Args:
        num_concurrent: trials at a time.
        place: where Ray Tune may keep notes of its own.
        time_s: how long it may take; for ever when unset.
        on_end: called after each trial.

    Returns:
        Whether the time sufficed.
    """
    done = [record for record in inputs.store.all() if record.is_settled]
    points = _points(config, seed, done)
    number = config.num_trials - len(done) if points is None else len(points)
    if number <= 0:
        return True
    if time_s is not None and time_s <= 0:
        return False
    began = time.monotonic()
    notes = scratch_folder(place, "ray_tune")
    algorithm = tpe(config, done, seed=seed) if points is None else None
    names_metric = algorithm is None and config.stopping == "none"  # else the algorithm or the scheduler knows it
    try:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(Trial, inputs=inputs, points=points), {"memory": 1}),
            param_space=None if points is None else {"number": tune.grid_search(list(range(number)))},
            tune_config=tune.TuneConfig(
                metric=config.objectives[0] if names_metric else None,
                mode="max" if names_metric else None,
                search_alg=algorithm,
                scheduler=_scheduler(config),
                num_samples=number if points is None else 1,
                max_concurrent_trials=num_concurrent,
                time_budget_s=time_s,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=_STUDY,
                storage_path=str(notes),
                verbose=0,
                callbacks=[_Records(inputs.store, points, on_end)],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        ).fit()
    finally:
        ray.get(inputs.queue.give_up_all.remote())  # a trial that the budget ended had no time to do it
        shutil.rmtree(notes, ignore_errors=True)
    return time_s is None or time.monotonic() - began < time_s


def distributions(space: Mapping[str, SearchRange]) -> dict[str, BaseDistribution]:
    """The space in Optuna's terms."""
    return {key: _distribution(search) for key, search in space.items()}


def study_of(
    config: TuneConfig, records: Sequence[TrialRecord], storage: optuna.storages.BaseStorage | None = None
) -> optuna.Study:
    """A study of the records: what TPE learns from, and importances are computed on. What a stopped trial had reached is no
    value beside those of finished ones."""
    study = optuna.create_study(storage=storage, study_name=_STUDY, directions=["maximize"] * len(config.objectives))
    for record in records:
        values = [record.objectives.get(name, math.nan) for name in config.objectives]
        is_measured = record.state == "finished" and not any(map(math.isnan, values))
        state = (
            TrialState.COMPLETE if is_measured else TrialState.PRUNED if record.state == "stopped" else TrialState.FAIL
        )
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(record.point),
                distributions=distributions(config.space),
                values=values if is_measured else None,
                state=state,
            )
        )
    return study


def importance(config: TuneConfig, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Setting -> share of the first objective's variance that it explains, largest first; empty where trials are too few.

    Source: fANOVA, Hutter et al. (2014), as in Optuna.
    """
    study = study_of(config, records)
    measured = study.get_trials(states=(TrialState.COMPLETE,))
    if (
        len(config.space) < 2
        or len(measured) < _FEWEST_FOR_IMPORTANCE
        or len({trial.values[0] for trial in measured}) < 2
    ):
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator, target=lambda trial: trial.values[0])


class _Records(tune.Callback):
    """Keeps what a trial could not: that the scheduler stopped it, or that its process ended without a word."""

    def __init__(self, store: TrialStore, points: Sequence[Point] | None, on_end: Callable[[], None]) -> None:
        self._store, self._points, self._on_end = store, points, on_end

    def __getstate__(self) -> dict:
        """Ray Tune pickles its callbacks to restore an experiment elsewhere, which never happens here."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: object) -> None:
        last = trial.last_result or {}
        if not last.get("is_finished", True):
            self._store.add(TrialRecord(**json.loads(last["record"])))
        self._on_end()

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: object) -> None:
        point = dict(self._points[trial.config["number"]] if self._points is not None else trial.config)
        if not any(record.point == point and record.error for record in self._store.all()):
            reason = (str(trial.get_error() or "").strip() or "no message").splitlines()[-1]
            error = f"the trial's process ended: {reason}"
            digest = content_hash_of(point)[:32]
            self._store.add(TrialRecord(digest, point, "interrupted", error=error, created_s=time.time()))
        self._on_end()


class TreeSearch(OptunaSearch):
    """Optuna's TPE that tries no point twice, and does not take what a stopped trial had reached for a result."""

    space: Mapping[str, SearchRange]
    known: list[Point]
    """Points that were tried, or are being tried."""

    def suggest(self, trial_id: str) -> Point | str | None:
        """The next point that is not known; the end of the search when none is left."""
        for _ in range(_MOST_DRAWS):
            point = self._draw(trial_id)
            if point not in self.known:
                self.known.append(point)
                return point
            self._ot_study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
        left = next((point for point in grid(self.space) if point not in self.known), None)
        if left is None:
            return Searcher.FINISHED
        self._ot_study.enqueue_trial(dict(left))
        self.known.append(self._draw(trial_id))
        return left

    def _draw(self, trial_id: str) -> Point:
        """What TPE would try; of a range with steps, the value as the grid spells it."""
        point = super().suggest(trial_id)
        assert isinstance(point, dict)
        return {key: round(value, 12) if self.space[key].step else value for key, value in point.items()}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Ray Tune's word that a trial has ended, with its last result."""
        is_stopped = result is not None and not result.get("is_finished", True)
        super().on_trial_complete(trial_id, None if is_stopped else result, error)


def _points(config: TuneConfig, seed: int, done: Sequence[TrialRecord]) -> list[Point] | None:
    """The points of a grid or random search that have no record yet; None for a search that learns."""
    if config.search == "tpe":
        return None
    if config.search == "grid":
        wanted: list[Point] = list(grid(config.space)[: config.num_trials])
    else:
        wanted = [random_point(config.space, seed=seed, number=number) for number in range(config.num_trials)]
    known = [record.point for record in done]
    return [point for index, point in enumerate(wanted) if point not in known and point not in wanted[:index]]


def tpe(config: TuneConfig, done: Sequence[TrialRecord], *, seed: int) -> TreeSearch:
    """Optuna's TPE, told of the trials that are there; its chance goes on with their number."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune.search.optuna").setLevel(logging.ERROR)
    sampler = optuna.samplers.TPESampler(
        seed=seed + 7919 * len(done),
        n_startup_trials=min(10, max(3, config.num_trials // 4)),
        multivariate=True,
        constant_liar=True,  # trials that still run count as poor ones, so that two of them do not try the same
    )
    storage = optuna.storages.InMemoryStorage()
    study_of(config, done, storage)
    is_single = len(config.objectives) == 1
    algorithm = TreeSearch(
        distributions(config.space),
        metric=config.objectives[0] if is_single else list(config.objectives),
        mode="max" if is_single else ["max"] * len(config.objectives),
        sampler=sampler,
        storage=storage,
        study_name=_STUDY,
    )
    algorithm.space, algorithm.known = config.space, [dict(record.point) for record in done]
    return algorithm


def _distribution(search: SearchRange) -> BaseDistribution:
    if search.choice is not None:
        return CategoricalDistribution(search.choice)
    if search.integers is not None:
        return IntDistribution(*search.integers)
    if search.loguniform is not None:
        return FloatDistribution(*search.loguniform, log=True)
    assert search.uniform is not None
    low, high = search.uniform
    if search.values is not None:
        return FloatDistribution(low, float(search.values[-1] or high), step=search.step)
    return FloatDistribution(low, high)


def _scheduler(config: TuneConfig) -> TrialScheduler | None:
    if config.stopping == "none":
        return None
    metric, clock = config.objectives[0], "observation"
    if config.stopping == "median":
        return MedianStoppingRule(
            time_attr=clock, metric=metric, mode="max", grace_period=1, min_samples_required=3, min_time_slice=math.inf
        )
    return ASHAScheduler(time_attr=clock, metric=metric, mode="max", grace_period=1, reduction_factor=2, max_t=10**6)
