"""The learners together: one call on every rank, one answer; a dead rank takes down the group, which starts anew."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from scpo_ray.artifacts import Recipe
from scpo_ray.config import LearnerConfig
from scpo_ray.errors import ScpoError
from scpo_ray.ppo.learner import Learner, LearnerTask
from scpo_ray.ppo.records import Experience, Sequences, WeightUpdate

if TYPE_CHECKING:
    from torch import Tensor


_NOTICE_S = 10.0


class LearnerDied(Exception):
    """A rank is dead: the group must be started again, from its last checkpoint."""


class Learners:
    """A group of ranks; nothing runs before `spawn` or `start`.

    Args:
        options: for rank i, what `ray.remote(...).options` takes.
    """

    def __init__(self, config: LearnerConfig, options: Callable[[int], dict], *, threads: int) -> None:
        self._config, self._options, self._threads = config, options, threads
        self.actors: list[Any] = []
        self._spawned: list[Any] = []
        self.has_changed = True
        """The ranks are new since this was last set to false."""

    def spawn(self) -> None:
        """Let every rank's process start and import its libraries, without waiting: other actors can load meanwhile."""
        learner = ray.remote(Learner)
        number = self._config.num_learners
        self._spawned = [
            learner.options(**self._options(rank)).remote(
                rank, number, threads=self._threads, uses_gpu=self._config.gpus_per_learner > 0
            )
            for rank in range(number)
        ]
        for actor in self._spawned:
            actor.import_libraries.remote()

    def start(self) -> None:
        """Start (again) every rank, unless it has just been spawned, and let them meet."""
        if self.actors or not self._spawned:
            self.stop()
            self.spawn()
        self.has_changed = True
        self.actors, self._spawned = self._spawned, []
        host, port = self._all_of([self.actors[0].address.remote()])[0]
        self._all("connect", host, port)

    def stop(self) -> None:
        """Kill every rank."""
        for actor in (*self.actors, *self._spawned):
            ray.kill(actor)
        self.actors, self._spawned = [], []

    def begin(self, task: LearnerTask) -> None:
        """Load a task's start policy on every rank."""
        self._all("begin", task)

    def describe(self) -> dict[str, object]:
        """Architecture and sizes of the policy."""
        return self._all("describe")[0]

    def evaluate(self, sequences: Sequences) -> dict[str, "Tensor"]:
        """log_probs, reference_log_probs and values of a batch, [responses, tokens], in the batch's order."""
        import torch

        parts = self._all("evaluate", ray.put(sequences))
        rows = torch.cat([part["rows"] for part in parts])
        order = torch.argsort(rows)
        return {
            name: torch.cat([part[name] for part in parts if name in part])[order]
            for name in {name for part in parts for name in part}
            if name != "rows"
        }

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """Learn from a batch; statistics of it."""
        return self._all("update", ray.put(experience), step)[0]

    def imitate(self, sequences: object, rows: Sequence[int], *, learning_rate: float) -> float:
        """One supervised step; the loss. `sequences` is a reference from `ray.put`, used for every step."""
        return self._all("imitate", sequences, list(rows), learning_rate=learning_rate)[0]

    def publish(self, version: int, canaries: Sequence[Sequence[int]], dtype: str) -> WeightUpdate:
        """Put the policy's weights into the object store."""
        return self._all("publish", version, canaries, dtype)[0]

    def open_transfer(self, engines: Sequence[Any], dtype: str) -> None:
        """Join rollout engines in an NCCL group."""
        host, port = self._all_of([self.actors[0].address.remote()])[0]
        self._all("open_transfer", host, port, list(engines), dtype)

    def broadcast(self, version: int, canaries: Sequence[Sequence[int]]) -> WeightUpdate:
        """Send the policy's weights over NCCL."""
        return self._all("broadcast", version, canaries)[0]

    def save(self, folder: str, state: dict) -> None:
        """Checkpoint; see Learner.save."""
        self._all("save", folder, state)

    def restore(self, folder: str) -> dict:
        """Go back to a checkpoint; the controller's state."""
        return self._all("restore", folder)[0]

    def write(self, recipe: Recipe, run_address: str, files: dict[str, object], statistics: dict[str, object]) -> None:
        """Write the policy's artifact."""
        self._all("write", recipe, run_address, files, statistics)

    def _all(self, method: str, *arguments: object, **options: object) -> list[Any]:
        limit_s = self._config.call_timeout_s
        return self._all_of([actor.call.remote(limit_s, method, *arguments, **options) for actor in self.actors])

    def _all_of(self, references: list) -> list[Any]:
        """Results of all ranks; the first error at once, since the others may wait for the rank that raised it."""
        waiting = list(references)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=self._config.call_timeout_s + _NOTICE_S)
            if not done:  # processes that are stopped do not end by themselves
                raise LearnerDied(f"no answer within {self._config.call_timeout_s:g} s")
            try:
                ray.get(done)
            except (RayActorError, ObjectLostError) as error:  # the rank, or its node with what it answered
                raise LearnerDied(str(error).splitlines()[0]) from error
            except RayTaskError as error:
                # A rank whose peer was killed may hear of it, as a broken connection, before Ray does.
                if not isinstance(error, ScpoError) and _has_died(waiting):
                    raise LearnerDied(str(error).splitlines()[0]) from error
                raise
        return ray.get(references)


def _has_died(references: list) -> bool:
    """Whether an actor that was to answer is dead; waits a while for Ray to notice."""
    done, _ = ray.wait(references, num_returns=len(references), timeout=_NOTICE_S) if references else ([], [])
    for reference in done:
        try:
            ray.get(reference)
        except RayActorError:
            return True
        except RayTaskError:
            continue
    return False
