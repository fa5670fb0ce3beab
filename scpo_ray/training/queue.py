"""The queue between those who want models trained and the worker groups that train them, longest first."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scpo_ray.training.task import Observation, StepReport, TrainingSummary, TrainingTask


@dataclass
class TaskState:
    """Where the trainings of a job stand."""

    num_tasks: int
    finished: dict[str, TrainingSummary] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    progress: dict[str, StepReport] = field(default_factory=dict)
    communities: dict[str, str] = field(default_factory=dict)
    """Task -> whose preferences it learns."""
    num_waiting: int = 0
    num_deaths: int = 0
    """How often a group of workers came back for the task that it had been at."""


@dataclass(frozen=True)
class Watched:
    """Where a watched training stands."""

    observations: tuple[Observation, ...] = ()
    """By step."""
    summary: TrainingSummary | None = None
    """Once it is finished."""
    failure: str | None = None
    is_of_workers: bool = False
    """The workers failed, not the training."""


NOTHING_YET = "nothing yet"
"""What `take` answers while tasks may still come."""


_LONGEST_PAUSE_S = 60.0
_LONGEST_NOTICE_S = 300.0
"""Between the notice that a node is to be taken away and the group's return on others."""


@ray.remote(num_cpus=0)
class TaskQueue:
    """Hands tasks to worker groups. A group that was restarted gets back the task it was working on.

    An open queue takes more tasks and makes idle groups wait; a closed one sends them home.
    """

    def __init__(
        self, tasks: Sequence[TrainingTask], max_failures: int, *, num_groups: int = 1, is_open: bool = False
    ) -> None:
        self._waiting = sorted(tasks, key=lambda task: (-task.size, task.name))
        self._leases: dict[int, TrainingTask] = {}
        self._interruptions: dict[str, int] = {}
        self._errors: dict[str, str] = {}
        self._observations: dict[str, dict[int, Observation]] = {}
        self._unwanted: set[str] = set()
        self._of_workers: set[str] = set()
        """Tasks that failed because their workers did."""
        self._sizes: dict[int, int] = {}
        """Of groups, in ranks, when they asked last."""
        self._expected: dict[int, float] = {}
        """Groups of which a node is about to be taken away: that they come back is no failure, until a time."""
        self._max_failures, self._num_groups, self._is_open = max_failures, num_groups, is_open
        self._ended: str | None = None
        self._state = TaskState(len(tasks))

    def add(self, tasks: Sequence[TrainingTask]) -> None:
        """Put tasks at the end of the line, in their order."""
        self._state.num_tasks += len(tasks)
        if self._ended is not None:
            self._state.failed |= {task.name: self._ended for task in tasks}
            self._of_workers |= {task.name for task in tasks}
        else:
            self._waiting += tasks

    def close(self) -> None:
        """No more tasks will come: what waits or runs is given up."""
        self._is_open = False
        self.give_up_all()

    def give_up_all(self) -> None:
        """Give up everything that waits or runs; the queue stays as open as it was."""
        self.give_up([task.name for task in (*self._waiting, *self._leases.values())])

    def give_up(self, names: Sequence[str]) -> None:
        """Forget tasks: waiting ones never start, running ones end at their next observation."""
        self._waiting = [task for task in self._waiting if task.name not in names]
        self._unwanted |= {task.name for task in self._leases.values() if task.name in names}
        for name in names:
            for known in (self._observations, self._state.finished, self._state.failed, self._state.progress):
                known.pop(name, None)

    def end_group(self, group: int, reason: str) -> None:
        """A worker group will not come back."""
        self._num_groups -= 1
        if group in self._leases:
            self.fail(group, reason, is_of_workers=True)
        if not self._num_groups:
            self._ended = reason
            self._of_workers |= {task.name for task in self._waiting}
            self._state.failed |= {task.name: reason for task in self._waiting}
            self._waiting = []

    def expect_death(self, group: int) -> None:
        """One of the group's nodes is about to be taken away."""
        self._expected[group] = time.monotonic() + _LONGEST_NOTICE_S

    def note_error(self, group: int, error: str) -> None:
        """What ended the group's workers last, for the message should they go on failing."""
        self._errors[self._leases[group].name] = error

    def pause_s(self, group: int) -> float:
        """How long a group that has just started waits before it goes on with its task: longer after every death."""
        if group not in self._leases or time.monotonic() < self._expected.get(group, -math.inf):
            return 0.0
        return min(_LONGEST_PAUSE_S, 2.0 ** self._interruptions.get(self._leases[group].name, 0))

    def take(self, group: int, size: int) -> TrainingTask | str | None:
        """The group's unfinished task, else the first that waits; `NOTHING_YET` while the queue is open, else None.

        Args:
            size: the group's number of ranks. One that comes back with more was not killed, but ended to grow.
        """
        has_grown = size > self._sizes.get(group, size)
        self._sizes[group] = size
        if group in self._leases and self._leases[group].name in self._unwanted:
            self._unwanted.discard(self._leases.pop(group).name)
        if group in self._leases:
            task = self._leases[group]
            if time.monotonic() < self._expected.pop(group, -math.inf) or has_grown:
                return task
            count = self._interruptions[task.name] = self._interruptions.get(task.name, 0) + 1
            if count <= self._max_failures:
                return task
            last = self._errors.get(task.name, "killed, or out of memory; see the Ray logs")
            reason = f"its worker group died {count} times, at last of: {last}; see train.max_failures"
            self.fail(group, reason, is_of_workers=True)
        if self._waiting:
            self._leases[group] = self._waiting.pop(0)
        return self._leases.get(group, NOTHING_YET if self._is_open else None)

    def advance(self, group: int, report: StepReport) -> None:
        """Note progress."""
        task = self._leases[group]
        self._state.progress[task.name] = report
        self._state.communities[task.name] = ", ".join(task.communities)

    def observe(self, group: int, observation: Observation | None) -> bool:
        """Note how a watched training does, if there is news; whether it is still wanted."""
        name = self._leases[group].name
        if observation is None:
            return name not in self._unwanted
        self._observations.setdefault(name, {})[observation.step] = observation
        return name not in self._unwanted

    def look(self, names: Sequence[str]) -> dict[str, Watched]:
        """Where watched trainings stand."""
        return {
            name: Watched(
                tuple(value for _, value in sorted(self._observations.get(name, {}).items())),
                self._state.finished.get(name),
                self._state.failed.get(name),
                name in self._of_workers,
            )
            for name in names
        }

    def finish(self, group: int, summary: TrainingSummary) -> None:
        """The group's task has written its artifact."""
        name = self._leases.pop(group).name
        if name not in self._unwanted:
            self._state.finished[name] = summary
        self._unwanted.discard(name)

    def fail(self, group: int, reason: str, *, is_of_workers: bool = False) -> None:
        """The group's task cannot succeed, with these workers or at all; the others go on."""
        name = self._leases.pop(group).name
        if name not in self._unwanted:
            self._state.failed[name] = reason
            if is_of_workers:
                self._of_workers.add(name)
        self._unwanted.discard(name)

    def state(self) -> TaskState:
        """A snapshot."""
        self._state.num_waiting, self._state.num_deaths = len(self._waiting), sum(self._interruptions.values())
        return self._state


def start_queue(tasks: Sequence[TrainingTask], max_failures: int, *, num_groups: int = 1, is_open: bool = False) -> Any:
    """A TaskQueue on this process' own node: it knows what nobody else does, and should not go with another node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = TaskQueue.options(scheduling_strategy=here)
    return queue.remote(list(tasks), max_failures, num_groups=num_groups, is_open=is_open)
