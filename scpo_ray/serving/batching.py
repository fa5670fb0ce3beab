"""Forward passes shared by whoever asks at the same time: dynamic batches by token budget, over requests and communities.

While batches are computed, what comes in waits; the next batch is built around whoever has waited longest, so that nobody
starves. Where batches are padded, sequences of similar length join; where they are packed, the same community's do, and
then the next's, since few communities with many tokens each cost less than many (adapters.py). Batches never mix models,
and mix communities freely where these share a base. A model that is not in memory is loaded on its turn, where it is
computed: what is in memory stays bounded whatever is asked at once, and a caller who gives up costs nobody a second load.

On a CPU two passes run side by side on half the threads each: the threads of one pass wait for each other after every
product, and whatever else runs on the machine makes them wait longer. Where much waits, a batch more than runs is built ahead, so
that no thread waits for the event loop, which has requests to read and answers to write.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from scpo_ray.errors import DataError, ScpoError
from scpo_ray.formatting import TokenSequence
from scpo_ray.scoring_cost import ScoringCost
from scpo_ray.serving.adapters import AdapterScorer
from scpo_ray.serving.catalog import ServedModel
from scpo_ray.serving.loading import LoadedModels

_BUDGETS_LOOKED_AT = _BUDGETS_OF_A_TURN = 8
_DEEP = 4
"""Batches per pass."""


class BusyError(ScpoError):
    """More waits than a replica takes on."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(eq=False)
class Item:
    """A sequence to score, and who waits for it."""

    model: ServedModel
    sequence: TokenSequence
    answer: "asyncio.Future[float]"

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.sequence.input_ids)


@dataclass(frozen=True)
class _Passed:
    """A batch that was computed."""

    rewards: np.ndarray
    is_packed: bool
    seconds: float
    """With loading the model, where it was not in memory."""


@dataclass
class Batcher:
    """A queue before the threads that compute. Use it from one event loop.

    Args:
        models: what is in memory.
        tokens_per_batch: tokens of one forward pass, padding included; a longer sequence goes alone.
        max_queued: sequences that may wait.
        num_passes: forward passes at a time; while fewer run, each has more of the torch threads.
        num_threads: torch threads of all passes together.
    """

    models: LoadedModels
    tokens_per_batch: int
    max_queued: int
    num_passes: int = 1
    num_threads: int = 1
    cost: ScoringCost = field(default_factory=ScoringCost)
    busy_s: float = 0.0
    """Time in forward passes, summed over those that run side by side, and in loading what they needed."""
    _queue: dict[str, list[Item]] = field(default_factory=dict)
    _running: "set[asyncio.Task[None]]" = field(default_factory=set)
    """One per pass that runs, or is about to, and where much waits one more, whose batch is next."""
    _num_computing: int = 0
    _turns: dict[str, int] = field(default_factory=dict)
    """Model -> tokens left of its turn."""

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.num_passes, thread_name_prefix="forward")

    @property
    def num_queued(self) -> int:
        """Sequences that wait."""
        return sum(map(len, self._queue.values()))

    def _drop_cancelled(self) -> None:
        """Whoever gave up takes no place."""
        for key in list(self._queue):
            self._queue[key] = [item for item in self._queue[key] if not item.answer.done()]
            if not self._queue[key]:
                del self._queue[key]
                self._turns.pop(key, None)

    def retry_after_s(self, number: int) -> int:
        """Whole seconds after which most of so many waiting sequences will have been computed, 1 to 60."""
        rate = self.num_passes * self.cost.num_responses / self.busy_s if self.busy_s else 1.0
        return int(min(60, max(1, round(number / max(rate, 1e-3)))))

    def submit(self, wanted: "Sequence[tuple[ServedModel, TokenSequence]]") -> "list[asyncio.Future[float]]":
        """Queue (model, sequence)s; their rewards, in order. Cancelled futures are not computed.

        Raises:
            BusyError: too much waits already; nothing is queued.
        """
        self.check_room(len(wanted))
        loop = asyncio.get_running_loop()
        items = [Item(model, sequence, loop.create_future()) for model, sequence in wanted]
        for item in items:
            self._queue.setdefault(item.model.key, []).append(item)
        for _ in range(min(len(items), self.num_passes - len(self._running))):
            self._running.add(loop.create_task(self._run()))
        if len(self._running) == self.num_passes and self._much_waits():
            self._running.add(loop.create_task(self._run()))
        return [item.answer for item in items]

    def check_room(self, number: int, *, num_coming: int = 0) -> None:
        """Refuse what cannot be queued now, or ever.

        Args:
            num_coming: of others who were not refused, and are not in the queue yet.

        Raises:
            DataError: more than `max_queued` at once.
            BusyError: too much waits already.
        """
        if number > self.max_queued:
            raise DataError(
                f"responses x communities: {number}, at most {self.max_queued}; ask for fewer communities or responses at a time"
            )
        self._drop_cancelled()
        waiting = self.num_queued + num_coming
        if waiting + number > self.max_queued:
            seconds = self.retry_after_s(waiting)
            raise BusyError(
                f"busy: {waiting} responses wait and {self.max_queued} may; try again in {seconds} s", seconds
            )

    async def _run(self) -> None:
        """Batch after batch, until nothing waits; whoever comes in after that finds this pass gone and starts another."""
        try:
            await self._compute_all()
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._running.discard(task)

    async def _compute_all(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next():
            self._num_computing += 1
            num_threads = max(1, self.num_threads // min(self.num_passes, len(self._running)))
            future = loop.run_in_executor(self._threads, self._forward, batch, num_threads)
            await asyncio.wait([future])
            self._num_computing -= 1
            if future.cancelled():  # the service ends
                for item in batch:
                    item.answer.cancel()
                return
            error = future.exception()
            if error is None:
                passed = future.result()
                self._note(batch, passed)
            for place, item in enumerate(batch):
                if item.answer.done():  # cancelled meanwhile
                    continue
                if error is not None:
                    item.answer.set_exception(error)
                else:
                    item.answer.set_result(float(passed.rewards[place]))
            if len(self._running) > self.num_passes and not self._much_waits():
                return

    def _much_waits(self) -> bool:
        """Whether a batch can be built ahead of its time and still be full."""
        enough = _DEEP * self.num_passes * self.tokens_per_batch
        waiting = 0
        for items in self._queue.values():
            for item in items:
                waiting += item.length
                if waiting >= enough:
                    return True
        return False

    def _next(self) -> list[Item]:
        """The sequence that has waited longest, and others of its model, within the budget."""
        for key in list(self._queue):
            alive = [item for item in self._queue[key] if not item.answer.done()]
            if not alive:
                del self._queue[key]
                self._turns.pop(key, None)
                continue
            choose = _same_community_first if self.models.packs(alive[0].model) else _similar_length_first
            self._turns.setdefault(key, self._turn(alive))
            batch = choose(alive, self._budget())
            chosen = set(map(id, batch))
            self._put_back(key, [item for item in alive if id(item) not in chosen], taken=batch)
            return batch
        return []

    def _turn(self, waiting: Sequence[Item]) -> int:
        """How many tokens a model's turn lasts for: what waited when it began, so that it is not loaded anew for every batch, and
        eight budgets at most, so that requests over many models do not all end together, and late."""
        return min(sum(item.length for item in waiting), _BUDGETS_OF_A_TURN * self.tokens_per_batch)

    def _put_back(self, key: str, rest: list[Item], *, taken: Sequence[Item]) -> None:
        """Models take turns: one whose turn is over goes behind the others with what is left."""
        left = self._turns.pop(key) - sum(item.length for item in taken)
        if not rest or left <= 0:
            del self._queue[key]
        if rest:
            self._queue[key] = rest
        if rest and left > 0:
            self._turns[key] = left

    def _budget(self) -> int:
        """Tokens of the next batch: the configured ones, or less where little waits and several passes are free."""
        num_free = max(1, len(self._running) - self._num_computing)
        if num_free == 1:
            return self.tokens_per_batch
        waiting = sum(item.length for items in self._queue.values() for item in items)
        return min(self.tokens_per_batch, math.ceil(waiting / num_free))

    def _note(self, batch: Sequence[Item], passed: "_Passed") -> None:
        lengths = [item.length for item in batch]
        self.cost.num_forward_passes += 1
        self.cost.num_responses += len(batch)
        self.cost.num_tokens += sum(lengths)
        self.cost.num_padded_tokens += sum(lengths) if passed.is_packed else max(lengths) * len(lengths)
        self.busy_s += passed.seconds

    def _forward(self, batch: Sequence[Item], num_threads: int) -> "_Passed":
        """In a computing thread."""
        start = time.perf_counter()
        torch.set_num_threads(num_threads)  # of this thread's own products
        sequences = [item.sequence for item in batch]
        with self.models.used(batch[0].model) as scorer:
            if isinstance(scorer, AdapterScorer):
                rewards = scorer.forward_for(sequences, [item.model.community for item in batch])
            else:
                rewards = scorer.forward(sequences)
            return _Passed(rewards, scorer.packs, time.perf_counter() - start)

    def close(self) -> None:
        """End the threads once their batches are done."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _similar_length_first(waiting: Sequence[Item], budget: int) -> list[Item]:
    """The first, and others by nearness in length while the padded batch is within the budget."""
    first = waiting[0]
    batch, longest = [first], first.length
    for item in sorted(waiting[1:], key=lambda item: abs(item.length - first.length)):
        longest = max(longest, item.length)
        if longest * (len(batch) + 1) > budget:
            break
        batch.append(item)
    return batch


def _same_community_first(waiting: Sequence[Item], budget: int) -> list[Item]:
    """The first and its community's; then other communities as they came, whole ones once half the budget is taken.

    Only among those that have waited longest, eight budgets of them: whoever comes later passes nobody else.
    """
    together: dict[str, list[Item]] = {}
    seen = 0
    for item in waiting:
        seen += item.length
        if together and seen > _BUDGETS_LOOKED_AT * budget:
            break
        together.setdefault(item.model.community, []).append(item)
    batch: list[Item] = []
    size = 0
    for items in together.values():
        if 2 * size >= budget and size + sum(item.length for item in items) > budget:
            continue
        for item in items:
            if batch and size + item.length > budget:
                return batch
            batch.append(item)
            size += item.length
    return batch
