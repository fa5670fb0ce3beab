"""The rollout engines together: spread prompts, keep all on the same weights, bring a restarted one up to date."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError

from scpo_ray.ppo import sync
from scpo_ray.ppo.actors import Call, Failures, Pool
from scpo_ray.ppo.learners import LearnerDied
from scpo_ray.ppo.placement import Placement
from scpo_ray.ppo.records import Sample, SyncReport, WeightUpdate
from scpo_ray.ppo.rollout import EngineSpec, RolloutEngine


@dataclass(frozen=True)
class Generation:
    """Responses on their way: the calls, and for each the positions of its prompts."""

    calls: list[Call] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=list)


class Engines:
    """A pool of rollout engines."""

    def __init__(
        self,
        number: int,
        spec: EngineSpec,
        placement: Placement,
        failures: Failures,
        *,
        tolerance: float,
        limit_s: float,
    ) -> None:
        self._limit_s = limit_s
        self._tolerance = tolerance
        self.publish_again: Callable[[], WeightUpdate] | None = None
        """With NCCL nothing of an update stays for an engine that starts again: this publishes it through the object store."""
        self.has_changed = True
        """An engine is new since this was last set to false."""
        self._update: WeightUpdate | None = None
        engine = ray.remote(RolloutEngine)

        def start(index: int) -> Any:
            return engine.options(**placement.options("engine", index)).remote(spec)

        self.pool = Pool("rollout engine", number, start, failures, ready=self._resynchronise, limit_s=limit_s)

    def begin_load(self) -> list[Call]:
        """Start vLLM everywhere; collecting it raises ModelError where vLLM cannot run the policy."""
        return [self.pool.submit(index, "load") for index in range(len(self.pool))]

    def synchronise(self, update: WeightUpdate) -> float:
        """Load published weights everywhere and prove it; the largest canary difference, nats.

        Raises:
            SynchronizationError: an engine does not hold what was published.
            LearnerDied: what was published is gone with the learner, or its node.
        """
        self._update = update
        with _weights_are_there():
            reports: list[SyncReport] = self.pool.all("update" if update.chunks else "confirm", update)
        return max(self._check(index, report) for index, report in enumerate(reports))

    def submit(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> Generation:
        """Start writing one response to each prompt; engines take turns, so that lengths spread evenly."""
        assert self._update is not None
        number = len(self.pool)
        generation = Generation()
        for index in range(min(number, len(prompts))):
            positions = list(range(index, len(prompts), number))
            arguments = ([prompts[place] for place in positions], [seeds[place] for place in positions])
            generation.calls.append(self.pool.submit(index, "generate", *arguments, self._update.version))
            generation.positions.append(positions)
        return generation

    def collect(self, generation: Generation) -> list[Sample]:
        """The responses, in the order of the prompts.

        Raises:
            LearnerDied: an engine started again, and the weights that it needs are gone with the learner.
        """
        found: dict[int, Sample] = {}
        with _weights_are_there():
            written = self.pool.collect(generation.calls)
        for positions, samples in zip(generation.positions, written, strict=True):
            found |= dict(zip(positions, samples, strict=True))
        return [found[place] for place in range(len(found))]

    def _resynchronise(self, index: int, actor: Any) -> None:
        self.has_changed = True
        ray.get(actor.call.remote(self._limit_s, "load"))
        if self._update is None:
            return
        if not self._update.chunks and self.publish_again is not None:
            self._update = self.publish_again()
        self._check(index, ray.get(actor.call.remote(self._limit_s, "update", self._update)))

    def _check(self, index: int, report: SyncReport) -> float:
        assert self._update is not None
        return sync.check(self._update, report, engine=f"rollout engine {index}", tolerance=self._tolerance)


@contextlib.contextmanager
def _weights_are_there() -> Iterator[None]:
    """Published weights live in the object store of the learner that published them: without it the learners publish again."""
    try:
        yield
    except ObjectLostError as error:
        raise LearnerDied(str(error).splitlines()[0]) from error
