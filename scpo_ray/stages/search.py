"""One search: its trials, the baselines beside them, and the point that is chosen."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray.artifacts import Manifest, Recipe, RunDirectory, content_hash_of
from scpo_ray.config import Config, Objective, PrepareConfig
from scpo_ray.core.agreement import agreement
from scpo_ray.core.pareto import choose, pareto_mask
from scpo_ray.errors import DataError, StorageError, TrainingError, WorkerError
from scpo_ray.reporting.tuning_page import TuningPage, render_tuning
from scpo_ray.runtime import Bar, progress_bar
from scpo_ray.stages import recipes
from scpo_ray.stages.global_model import global_model_address
from scpo_ray.stages.needs import reserved
from scpo_ray.stages.select import majority_of
from scpo_ray.stages.train import communities_to_train
from scpo_ray.stages.trial import TrialInputs, TrialRun
from scpo_ray.stages.trials import importance, run_trials
from scpo_ray.tuning.objectives import ValidationPairs, summarize
from scpo_ray.tuning.records import State, TrialRecord, TrialStore, trial_table
from scpo_ray.tuning.space import Point

DEFAULT, AUTO = "as configured", "auto"
_POLL_S = 0.2


@dataclass(frozen=True)
class Outcome:
    """What a search leaves."""

    records: Sequence[TrialRecord]
    """In the order in which they ended."""
    baselines: Mapping[str, TrialRecord]
    """The settings as they were, and τ and β by the rule, as trials of their own."""
    best: TrialRecord
    front: Sequence[TrialRecord]
    """The trials that no other beats in every objective."""


def check_validation(config: Config, directory: RunDirectory) -> None:
    """Refuse prepared data that trials could not be judged on.

    Raises:
        DataError: a community, or the majority, has no validation pairs.
    """
    is_validation = pc.field("split") == "validation"
    known = set(
        directory.read_table("prepared/pairs.parquet", columns=["community"], filters=is_validation)[0].to_pylist()
    )
    if not known & set(majority_of(directory)):
        raise DataError("the majority has no validation pairs to judge trials by; raise prepare.validation_fraction")
    lacking = [name for name in communities_to_train(config, directory) if name not in known]
    if lacking:
        raise DataError(
            f"{', '.join(lacking)}: no validation pairs to judge trials by; raise prepare.validation_fraction, or name the "
            "other communities in train.communities"
        )


class Search:
    """A search of a run directory, by its name; what it has tried is on disk."""

    def __init__(self, config: Config, directory: RunDirectory) -> None:
        self.config, self.directory = config, directory
        self.folder = f"tune/{config.tune.name}"
        self.store = TrialStore(directory, config.tune.name)
        self.recipe = _recipe(config, directory)

    def claim(self) -> None:
        """Mark the folder as this search's before its first trial, so that it is never continued as another.

        Raises:
            ArtifactError: it is another's, and `rebuild` is off.
        """
        claim = Recipe(f"{self.folder}/claim", "tune", self.recipe.identity, self.recipe.inputs, self.recipe.seed)
        if claim.is_made(self.directory, rebuild=self.config.rebuild) is None:
            self.directory.remove(self.folder)
            with claim.making(self.directory):
                pass

    def check(self) -> None:
        """Refuse objectives that no model could have, before any is trained.

        Raises:
            DataError: an objective is NaN whatever a model does.
        """
        pairs = self.directory.read_table("prepared/pairs.parquet", filters=pc.field("split") == "validation")
        scores = self.directory.read_table("scores/scores.parquet", columns=["response_id", "reward"])
        communities = communities_to_train(self.config, self.directory)
        validation = {name: _validation_pairs(pairs, scores, name, self.config) for name in communities}
        _check_objectives(self.config.tune.objectives, validation)

    def sweep(self) -> None:
        """Remove what trials, also killed ones, needed while they ran."""
        for name in ("decisions", "checkpoints"):
            self.directory.remove(f"{self.folder}/data/{name}")

    @property
    def num_trials(self) -> int:
        """How many there will be."""
        return self.config.tune.num_planned

    @property
    def max_tasks(self) -> int:
        """Trainings of all trials and baselines."""
        return (self.num_trials + 2) * len(communities_to_train(self.config, self.directory))

    @property
    def is_complete(self) -> bool:
        """Whether the result is there, of as many trials as the config asks for."""
        found = self.directory.find(self.recipe.name)
        if found is None or found.statistics["criterion"] != self.config.tune.criterion:
            return False
        return int(str(found.statistics["num_asked"])) >= self.num_trials

    @property
    def has_result(self) -> bool:
        """Whether there is a result, of however many trials."""
        return self.directory.find(self.recipe.name) is not None

    @property
    def manifest(self) -> Manifest:
        """Of the result."""
        return self.directory.require(self.recipe.name, job="tune")

    def run(self, queue, place: Path, *, deadline: float = math.inf) -> None:
        """Try what is not tried yet on an open TaskQueue, choose, write the result.

        Args:
            place: a folder on a disk, for Ray Tune's notes.
            deadline: of the monotonic clock; baselines and trials end there.

        Raises:
            TrainingError: no trial was finished.
        """
        self._started = time.monotonic()
        inputs = self._inputs(queue)
        baselines = self._baselines(inputs, deadline)
        default = baselines[DEFAULT]
        if self.config.tune.criterion == "maximin" and not default.objectives:
            raise TrainingError(
                f"tune.criterion maximin compares with the settings as configured, which failed: {default.error}"
            )
        with progress_bar("tune", unit="trials", run=self.directory.absolute_address) as bar:
            self._show(bar)
            is_in_time = run_trials(
                inputs,
                self.config.tune,
                num_concurrent=self.config.tune.max_concurrent or self._num_useful(len(inputs.communities)),
                seed=self.config.seed,
                place=place,
                time_s=None if deadline == math.inf else deadline - time.monotonic(),
                on_end=lambda: self._show(bar),
            )
        records = self.store.all()
        is_over = is_in_time and all(record.is_settled for record in records)
        outcome = self._choose(records, baselines, is_in_time=is_in_time)
        self._write(outcome, num_asked=self.num_trials if is_over else 0)

    def _show(self, bar: Bar) -> None:
        records = self.store.all()
        first = self.config.tune.objectives[0]
        found = [record.objectives[first] for record in records if record.state == "finished"]
        best = max((value for value in found if math.isfinite(value)), default=None)
        failed = sum(record.state == "failed" for record in records)
        measures = {"trainings_failed": float(failed)} | ({} if best is None else {"best_objective": best})
        bar.update(len(records), self.num_trials, name=self.config.tune.name, measures=measures)

    def _num_useful(self, trainings_per_trial: int) -> int:
        """Trials that keep all worker groups at work, and one that waits; more would be chosen knowing less."""
        return math.ceil(self.config.train.num_worker_groups / trainings_per_trial) + 1

    def outcome(self) -> Outcome:
        """The result that is there."""
        values = self.directory.read_json(f"{self.recipe.name}/outcome.json")
        return Outcome(
            records=[TrialRecord(**row) for row in values["records"]],
            baselines={name: TrialRecord(**row) for name, row in values["baselines"].items()},
            best=TrialRecord(**values["best"]),
            front=[TrialRecord(**row) for row in values["front"]],
        )

    def _inputs(self, queue) -> TrialInputs:
        """A copy of the data without test pairs, and what trials share."""
        config, directory = self.config, self.directory
        data = RunDirectory(f"{directory.absolute_address}/{self.folder}/data")
        pairs = directory.read_table("prepared/pairs.parquet", filters=pc.field("split") != "test")
        mentioned = pc.unique(pa.concat_arrays([pairs[name].combine_chunks() for name in ("chosen_id", "rejected_id")]))
        with Recipe(recipes.PREPARED, "tune", {}, {}, config.seed).making(data) as draft:
            is_mentioned = pc.field("response_id").isin(mentioned)
            draft.write_table(
                "responses.parquet", directory.read_table("prepared/responses.parquet", filters=is_mentioned)
            )
            draft.write_table("pairs.parquet", pairs)
        scores = directory.read_table(
            "scores/scores.parquet", columns=["response_id", "reward"], filters=pc.field("response_id").isin(mentioned)
        )
        majority, communities = majority_of(directory), communities_to_train(config, directory)
        made = (recipes.prepared(config), recipes.scores(config, directory), recipes.global_model(config, directory))
        return TrialInputs(
            config=config.model_copy(update={"run_dir": data.absolute_address, "prepare": PrepareConfig()}),
            data=data,
            content=content_hash_of([recipes.checked(directory, recipe).content_hash for recipe in made]),
            global_address=global_model_address(directory),
            pairs=pairs,
            scores=scores,
            majority=tuple(majority),
            communities=tuple(communities),
            validation={name: _validation_pairs(pairs, scores, name, config) for name in communities},
            store=self.store,
            queue=queue,
        )

    def _baselines(self, inputs: TrialInputs, deadline: float) -> dict[str, TrialRecord]:
        """The settings as configured, and τ and β found without training, as trials that the search does not see."""
        points: dict[str, Point] = {DEFAULT: {}}
        if self.config.select.strategy == "filter_weight":
            points[AUTO] = dict.fromkeys(("select.agreement_threshold", "select.weight_temperature"), "auto")
        store = TrialStore(self.directory, f"{self.config.tune.name}/baselines")
        found = {}
        for name, point in points.items():
            others = {  # what is fixed for a community alone would stay as it is
                community: {key: value for key, value in settings.items() if key not in point}
                for community, settings in inputs.config.per_community.items()
            }
            run = TrialRun(
                replace(inputs, config=inputs.config.model_copy(update={"per_community": others})) if point else inputs,
                point,
            )
            record = store.finished(run.digest)
            if record is None:
                record = _run_alone(run, deadline)
                if record.is_settled:
                    store.add(record)
            found[name] = record
        return found

    def _choose(
        self, records: Sequence[TrialRecord], baselines: Mapping[str, TrialRecord], *, is_in_time: bool
    ) -> Outcome:
        """The front and the chosen point among the finished trials.

        Raises:
            TrainingError: there is none.
        """
        tune = self.config.tune
        names = tune.objectives
        measured = [
            record
            for record in records
            if record.state == "finished" and not any(math.isnan(record.objectives[name]) for name in names)
        ]
        if not measured:
            reasons = [] if is_in_time else ["the time budget ended before the first"]
            reasons += dict.fromkeys(record.error for record in records if record.error)
            raise TrainingError(
                f"none of {len(records)} trials was finished: {'; '.join(reasons) or 'see the Ray logs'}"
            )
        values = np.array([[record.objectives[name] for name in names] for record in measured])
        default = baselines[DEFAULT].objectives
        baseline = np.array([default[name] for name in names]) if default else None
        return Outcome(
            records=records,
            baselines=baselines,
            best=measured[choose(values, criterion=tune.criterion, baseline=baseline)],
            front=[record for record, is_on in zip(measured, pareto_mask(values), strict=True) if is_on],
        )

    def _write(self, outcome: Outcome, *, num_asked: int) -> None:
        """Args: num_asked: trials that were made or found to repeat others; 0 where the time ended before."""
        states = Counter(record.state for record in outcome.records)
        with self.recipe.making(self.directory) as draft:
            draft.write_table("trials.parquet", trial_table(outcome.records, list(self.config.tune.space)))
            draft.write_json("outcome.json", asdict(outcome))
            (draft.folder / "tune.html").write_text(self._page(outcome), encoding="utf-8")
            draft.statistics |= {"num_trials": len(outcome.records), "num_asked": num_asked}
            draft.statistics |= {"criterion": self.config.tune.criterion}
            draft.statistics |= {"wall_time_s": round(time.monotonic() - self._started, 3)}
            draft.statistics |= {state: states[state] for state in get_args(State)}

    def _page(self, outcome: Outcome) -> str:
        is_validation = pc.field("split") == "validation"
        pairs = self.directory.read_table("prepared/pairs.parquet", columns=["community"], filters=is_validation)
        counted, config = Counter(pairs["community"].to_pylist()), self.config
        page = TuningPage(
            title=config.report.title,
            run_dir=config.run_dir,
            seed=config.seed,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            keys=list(config.tune.space),
            objectives=config.tune.objectives,
            criterion=config.tune.criterion,
            search=config.tune.search,
            records=outcome.records,
            best=outcome.best,
            front=outcome.front,
            baselines=outcome.baselines,
            importance=importance(config.tune, outcome.records),
            num_validation={name: counted[name] for name in outcome.best.by_community},
        )
        return render_tuning(page)


def _recipe(config: Config, directory: RunDirectory) -> Recipe:
    identity = config.tune.identity("tune") | config.train.identity("train") | config.format.identity("format")
    identity |= config.select.identity("select") | {"seed": config.seed, "per_community": config.per_community}
    identity["communities"] = communities_to_train(config, directory)
    identity["tune.space"] = {
        key: search.model_dump(exclude_none=True, mode="json") for key, search in config.tune.space.items()
    }
    identity["evaluate.test_threshold"] = config.evaluate.test_threshold
    made = (recipes.prepared(config), recipes.scores(config, directory), recipes.global_model(config, directory))
    inputs = {recipe.name: recipes.checked(directory, recipe).content_hash for recipe in made}
    return Recipe(f"tune/{config.tune.name}/result", "tune", identity, inputs, config.seed, reserved(config, "tune"))


def _check_objectives(objectives: Sequence[Objective], validation: Mapping[str, ValidationPairs]) -> None:
    """What no model could have, none needs to be trained for.

    Raises:
        DataError: an objective is NaN whatever a model does.
    """
    of_any_model = summarize(
        {name: pairs.measure(np.ones(len(pairs.global_is_wrong)), [1.0]) for name, pairs in validation.items()}
    )
    for name in objectives:
        if math.isnan(of_any_model[name]):
            kind = "right" if name == "retention" else "wrong"
            raise DataError(
                f"tune.objectives: {name}: of no community's validation pairs does the global model get any {kind}; choose "
                "another objective, or raise prepare.validation_fraction"
            )


def _validation_pairs(pairs: pa.Table, scores: pa.Table, community: str, config: Config) -> ValidationPairs:
    is_own = pc.and_(pc.equal(pairs["community"], community), pc.equal(pairs["split"], "validation"))
    own = pairs.filter(is_own).sort_by("pair_id")
    position = scores["response_id"].combine_chunks()
    chosen, rejected = (
        scores["reward"].take(pc.index_in(own[name], position)).to_numpy() for name in ("chosen_id", "rejected_id")
    )
    return ValidationPairs(
        community, agreement(chosen_rewards=chosen, rejected_rewards=rejected) < config.evaluate.test_threshold
    )


def _run_alone(run: TrialRun, deadline: float) -> TrialRecord:
    """A trial outside of Ray Tune, to its end."""
    try:
        run.start()
        while not (state := run.look())[2]:
            if time.monotonic() > deadline:
                return run.record("interrupted", {}, error="the time budget ended")
            time.sleep(_POLL_S)
        return run.record("finished", state[1])
    except (WorkerError, StorageError) as error:
        return run.record("interrupted", {}, error=str(error))
    except (DataError, TrainingError) as error:
        return run.record("failed", {}, error=str(error))
    finally:
        run.end()
