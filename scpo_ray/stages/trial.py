"""One trial of a search: selection in memory, trainings on the search's worker groups, accuracies on validation pairs.

A trial reads the search's own copy of the data, in which test pairs do not occur.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray
from ray import tune

from scpo_ray.artifacts import Recipe, RunDirectory, content_hash_of
from scpo_ray.config import Arm, Config, Value
from scpo_ray.errors import ScpoError, StorageError, TrainingError, WorkerError
from scpo_ray.records import safe_name
from scpo_ray.stages.select import decide, statistics
from scpo_ray.stages.train import check_enough
from scpo_ray.training.queue import Watched
from scpo_ray.training.task import StartModel, TrainingTask, Watch
from scpo_ray.tuning.objectives import ValidationPairs, summarize
from scpo_ray.tuning.records import TrialRecord, TrialStore
from scpo_ray.tuning.space import Point, with_point

_POLL_S = 0.2


@dataclass(frozen=True)
class TrialInputs:
    """What all trials of a search share, in Ray's object store."""

    config: Config
    data: RunDirectory
    """Prepared pairs and responses without test pairs."""
    content: str
    """Hash of the data, the scores and the global model."""
    global_address: str
    pairs: pa.Table
    scores: pa.Table
    majority: tuple[str, ...]
    communities: tuple[str, ...]
    validation: Mapping[str, ValidationPairs]
    store: TrialStore
    queue: Any
    """A TaskQueue that is open."""


@dataclass
class TrialRun:
    """A point on its way to a record."""

    inputs: TrialInputs
    point: Point
    started_s: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.config = with_point(self.inputs.config, self.point)
        self.arm: Arm = self.config.select.arms[0]
        self.digest = trial_digest(self.inputs, self.config)
        self._name = f"{self.digest[:12]}-{uuid.uuid4().hex[:8]}"  # the same point may be on its way twice
        base = self.inputs.config
        passes = base.train.epochs * base.train.evaluations_per_epoch  # not the point's: trials need a common clock
        self._num_parts = 1 if base.tune.stopping == "none" else max(1, round(passes))
        self._tasks: list[TrainingTask] = []
        self._constants: dict[str, dict[str, float | None]] = {}

    def start(self) -> None:
        """Select, and put the communities' trainings into the queue.

        Raises:
            ScpoError: the selection is impossible, or leaves too few pairs.
        """
        ledger, found = decide(
            self.inputs.pairs, self.inputs.scores, self.config, self.arm, majority=self.inputs.majority
        )
        decided: dict[str, Any] = statistics(ledger, self.inputs.pairs, self.arm, found)
        name = f"decisions/{self._name}"
        recipe = Recipe(name, "tune", {}, {}, self.config.seed)
        for community in self.inputs.communities:
            min_pairs = self.config.for_community(community).train.min_pairs
            check_enough(community, decided["communities"][community]["num_kept"], min_pairs)
            self._constants[community] = decided["communities"][community]["constants"]
        with recipe.making(self.inputs.data) as draft:
            draft.write_table("decisions.parquet", ledger)
        self._tasks = [
            self._task(community, decided, f"{name}/decisions.parquet") for community in self.inputs.communities
        ]
        ray.get(self.inputs.queue.add.remote(self._tasks))

    def look(self) -> tuple[int, dict[str, dict[str, float]], bool]:
        """(parts of the trainings that are done, metrics by community, whether all are finished).

        Parts count in the order of the communities, each from its first to its last and equally many for each, so that trials
        which have done equally many can be compared.

        Raises:
            TrainingError: one of the trainings failed.
        """
        seen: Mapping[str, Watched] = ray.get(self.inputs.queue.look.remote([task.name for task in self._tasks]))
        number, metrics = 0, {}
        for task in self._tasks:
            watched = seen[task.name]
            if watched.failure is not None:
                raise (WorkerError if watched.is_of_workers else TrainingError)(watched.failure)
            observations = {observation.step: observation for observation in watched.observations}
            if observations:
                kept = watched.summary.kept_step if watched.summary is not None else max(observations)
                observation = observations[kept]
                community = task.communities[0]
                metrics[community] = self.inputs.validation[community].measure(observation.own, observation.majority)
            if watched.summary is None:
                return (
                    number + max((observation.part for observation in watched.observations), default=0),
                    metrics,
                    False,
                )
            number += self._num_parts
            if not observations:
                raise TrainingError(f"{task.name}: no step, nothing to judge it by; raise train.epochs")
        return number, metrics, True

    def end(self) -> None:
        """Give up what still waits or runs, and forget the rest. Its decisions stay: a rank may be reading them."""
        ray.get(self.inputs.queue.give_up.remote([task.name for task in self._tasks]))

    def record(self, state: Any, metrics: Mapping[str, Mapping[str, float]], *, error: str = "") -> TrialRecord:
        """What became of it."""
        return TrialRecord(
            digest=self.digest,
            point=dict(self.point),
            state=state,
            objectives=summarize(metrics) if metrics else {},
            by_community={name: dict(row) for name, row in metrics.items()},
            constants=self._constants,
            error=error,
            wall_time_s=round(time.time() - self.started_s, 3),
            created_s=time.time(),
        )

    def _task(self, community: str, decided: Mapping[str, Any], decisions: str) -> TrainingTask:
        of_community = decided["communities"][community]
        identity = {"trial": self._name, "community": community}
        train = self.config.for_community(community).train
        return TrainingTask(
            recipe=Recipe(f"trials/{self._name}/{safe_name(community)}", "tune", identity, {}, self.config.seed),
            run_address=self.inputs.data.absolute_address,
            start=StartModel(self.inputs.global_address),
            communities=(community,),
            decisions=decisions,
            config=train,
            format_config=self.config.format,
            seed=self.config.seed,
            size=of_community["num_kept"],
            num_items=of_community["offered"][train.batching] if train.equal_steps else None,
            card={"name": f"{self._name}/{community}"},
            watch=Watch(self.inputs.majority, num_parts=self._num_parts),
        )


def trial_digest(inputs: TrialInputs, config: Config) -> str:
    """Two points with the same digest give the same result: defaults that are spelled out, seeds, data and models count."""
    not_of_trial = ("select.controls", "select.curve_thresholds", "select.curve_shares")
    select = {key: value for key, value in config.select.identity("select").items() if key not in not_of_trial}
    identity = select | config.train.identity("train") | config.format.identity("format")
    identity["per_community"] = config.per_community
    test_threshold = config.evaluate.test_threshold
    return content_hash_of(identity, config.seed, inputs.content, inputs.communities, inputs.majority, test_threshold)[
        :32
    ]


class Trial(tune.Trainable):
    """A `TrialRun` as Ray Tune sees it; every step is an observation. It holds no CPU, so it can wait without blocking."""

    def setup(self, config: dict, *, inputs: TrialInputs, points: Sequence[Point] | None = None) -> None:
        """Start, unless this point was finished before."""
        point: dict[str, Value] = dict(points[config["number"]]) if points is not None else dict(config)
        try:
            self._run = TrialRun(inputs, point)
        except ScpoError as error:  # settings that contradict each other
            digest = content_hash_of(point)[:32]
            inputs.store.add(TrialRecord(digest, point, "failed", error=str(error), created_s=time.time()))
            raise
        self._number = 0
        self._known = inputs.store.finished(self._run.digest)
        if self._known is None:
            self._guarded(self._run.start)

    def step(self) -> dict:
        """Wait for the next observation; its metrics over the communities that have any."""
        if self._known is not None:
            self._run.inputs.store.add(replace(self._known, point=dict(self._run.point)))  # of another search, perhaps
            return {**self._known.objectives, "observation": 0, "is_finished": True, "done": True}
        while True:
            number, metrics, is_finished = self._guarded(self._run.look)
            if number > self._number or is_finished:
                break
            time.sleep(_POLL_S)
        self._number = number
        if is_finished:
            self._run.inputs.store.add(self._run.record("finished", metrics))
        if_stopped = json.dumps(asdict(self._run.record("stopped", metrics)))
        of_tune = {"observation": number, "is_finished": is_finished, "done": is_finished, "record": if_stopped}
        return summarize(metrics) | of_tune

    def reset_config(self, new_config: dict) -> bool:
        """Take the next trial in the same process."""
        self.cleanup()
        self.setup(new_config)  # Ray Tune's wrapper, which knows the shared inputs
        return True

    def cleanup(self) -> None:
        """The trial is over, however it ended."""
        if self._known is None:
            self._run.end()

    def _guarded(self, ask):
        try:
            return ask()
        except ScpoError as error:
            state = "interrupted" if isinstance(error, WorkerError | StorageError) else "failed"
            self._run.inputs.store.add(self._run.record(state, {}, error=str(error)))
            raise
