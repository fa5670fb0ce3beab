"""Actors that are started again when they die."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from scpo_ray import nodes
from scpo_ray.errors import WorkerError

_LIMIT_S = 1800.0


class Failures:
    """How many deaths of actors a run has seen, and how many it bears. Those that a notice announced are borne anyhow."""

    def __init__(self, most: int) -> None:
        self._most, self.seen, self._are_announced = most, [], False

    def watch(self) -> bool:
        """Ask, between two steps, whether a node is to be taken away; deaths until the next time are then no failures."""
        self._are_announced = bool(nodes.draining())
        return self._are_announced

    def note(self, who: str) -> None:
        """One more, unless it was announced.

        Raises:
            WorkerError: it was one too many.
        """
        if self._are_announced:
            return
        self.seen.append(who)
        if len(self.seen) > self._most:
            raise WorkerError(
                f"{', '.join(self.seen)}: died ({len(self.seen)} deaths, max_failures is {self._most}), perhaps for want of "
                "memory; the last checkpoint is intact, rerun to resume"
            )


@dataclass(frozen=True)
class Call:
    """A method of an actor of the pool, on its way."""

    index: int
    actor: Any
    method: str
    arguments: tuple
    result: Any


class Pool:
    """Actors of one kind, by number.

    Args:
        kind: what they are called in messages.
        start: makes actor i.
        ready: brings a new actor to where the others are; also called on the first ones.
        limit_s: after which a call has hung. Actors are `EndsIfHung`.
    """

    def __init__(
        self,
        kind: str,
        number: int,
        start: Callable[[int], Any],
        failures: Failures,
        *,
        ready: Callable[[int, Any], None] = lambda index, actor: None,
        limit_s: float = _LIMIT_S,
    ) -> None:
        self._limit_s = limit_s
        self.kind, self._start, self._failures, self._ready = kind, start, failures, ready
        self.actors = [start(index) for index in range(number)]

    def __len__(self) -> int:
        return len(self.actors)

    def submit(self, index: int, method: str, *arguments: object) -> Call:
        """Call a method; `collect` waits for it."""
        actor = self.actors[index]
        return Call(index, actor, method, arguments, actor.call.remote(self._limit_s, method, *arguments))

    def collect(self, calls: Sequence[Call]) -> list[Any]:
        """Results in the order of the calls; what a dead actor was called for, its successor is called for again.

        Raises:
            WorkerError: more died than the run bears.
        """
        return [self._result(call) for call in calls]

    def all(self, method: str, *arguments: object) -> list[Any]:
        """The method of every actor."""
        return self.collect([self.submit(index, method, *arguments) for index in range(len(self))])

    def stop(self) -> None:
        """Kill them."""
        for actor in self.actors:
            ray.kill(actor)

    def _result(self, call: Call) -> Any:
        while True:
            try:
                return ray.get(call.result)
            except (RayActorError, ObjectLostError) as error:
                if isinstance(error, RayTaskError):  # what the actor wanted to read is lost, not what it answered
                    raise
                if self.actors[call.index] is call.actor:  # else another call has started a successor already
                    self._replace(call.index)
                call = self.submit(call.index, call.method, *call.arguments)

    def _replace(self, index: int) -> None:
        """Start a successor and bring it up to date; if it dies of that, the next one."""
        while True:
            self._failures.note(f"{self.kind} {index}")
            ray.kill(self.actors[index])
            self.actors[index] = self._start(index)
            try:
                self._ready(index, self.actors[index])
            except RayActorError:
                continue
            return
