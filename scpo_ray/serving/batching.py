"""Forward passes shared by whoever asks at the same time: dynamic batches by token budget, over requests and communities.

While one batch is computed, what comes in waits; the next batch is built around whoever has waited longest, of sequences of
similar length, so that little is padded and nobody starves. Batches never mix models, and mix communities freely where
these share a base. A model that is not in memory is loaded on its turn, by the one thread that computes: what is in memory
stays bounded whatever is asked at once, and a caller who gives up costs nobody a second load.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from scpo_ray.errors import DataError, ScpoError
from scpo_ray.formatting import TokenSequence
from scpo_ray.scoring_cost import ScoringCost
from scpo_ray.serving.adapters import AdapterScorer
from scpo_ray.serving.catalog import ServedModel
from scpo_ray.serving.loading import LoadedModels


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


@dataclass
class Batcher:
    """A queue before one computing thread. Use it from one event loop.

    Args:
        models: what is in memory.
        tokens_per_batch: padded tokens of one forward pass; a longer sequence goes alone.
        max_queued: sequences that may wait.
    """

    models: LoadedModels
    tokens_per_batch: int
    max_queued: int
    cost: ScoringCost = field(default_factory=ScoringCost)
    busy_s: float = 0.0
    """Time in forward passes, and in loading what they needed."""
    _queue: dict[str, list[Item]] = field(default_factory=dict)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="forward"))
    _running: "asyncio.Task[None] | None" = None

    @property
    def num_queued(self) -> int:
        """Sequences that wait."""
        return sum(map(len, self._queue.values()))

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which most of what waits will have been computed, 1 to 60."""
        rate = self.cost.num_responses / self.busy_s if self.busy_s else 1.0
        return int(min(60, max(1, round(self.num_queued / max(rate, 1e-3)))))

    def submit(self, wanted: "Sequence[tuple[ServedModel, TokenSequence]]") -> "list[asyncio.Future[float]]":
        """Queue (model, sequence)s; their rewards, in order. Cancelled futures are not computed.

        Raises:
            BusyError: too much waits already; nothing is queued.
        """
        waiting = self.num_queued
        if waiting + len(wanted) > self.max_queued:
            raise BusyError(
                f"busy: {waiting} responses wait and {self.max_queued} may; try again in {self.retry_after_s} s",
                self.retry_after_s,
            )
        loop = asyncio.get_running_loop()
        items = [Item(model, sequence, loop.create_future()) for model, sequence in wanted]
        for item in items:
            self._queue.setdefault(item.model.key, []).append(item)
        if items and (self._running is None or self._running.done()):
            self._running = loop.create_task(self._run())
        return [item.answer for item in items]

    def check_fits(self, number: int) -> None:
        """Refuse what could never be queued.

        Raises:
            DataError: more than `max_queued` at once.
        """
        if number > self.max_queued:
            raise DataError(
                f"responses x communities: {number}, at most {self.max_queued}; ask for fewer communities or responses at a time"
            )

    async def _run(self) -> None:
        """Batch after batch, until nothing waits."""
        loop = asyncio.get_running_loop()
        while batch := self._next():
            start = time.perf_counter()
            future = loop.run_in_executor(self._thread, self._forward, batch)
            await asyncio.wait([future])
            self._note(batch, time.perf_counter() - start)
            error = future.exception()
            for place, item in enumerate(batch):
                if item.answer.done():  # cancelled meanwhile
                    continue
                if error is not None:
                    item.answer.set_exception(error)
                else:
                    item.answer.set_result(float(future.result()[place]))

    def _next(self) -> list[Item]:
        """The sequence that has waited longest, and others of its model by nearness in length, within the budget."""
        for key in list(self._queue):
            alive = [item for item in self._queue[key] if not item.answer.done()]
            if not alive:
                del self._queue[key]
                continue
            first = alive[0]
            batch, longest = [first], first.length
            for item in sorted(alive[1:], key=lambda item: abs(item.length - first.length)):
                longest = max(longest, item.length)
                if longest * (len(batch) + 1) > self.tokens_per_batch:
                    break
                batch.append(item)
            chosen = set(map(id, batch))
            rest = [item for item in alive if id(item) not in chosen]
            del self._queue[key]
            if rest:
                self._queue[key] = rest  # behind the other models: they take turns
            return batch
        return []

    def _note(self, batch: Sequence[Item], seconds: float) -> None:
        lengths = [item.length for item in batch]
        self.cost.num_forward_passes += 1
        self.cost.num_responses += len(batch)
        self.cost.num_tokens += sum(lengths)
        self.cost.num_padded_tokens += max(lengths) * len(lengths)
        self.busy_s += seconds

    def _forward(self, batch: Sequence[Item]) -> np.ndarray:
        """In the computing thread."""
        scorer, sequences = self.models.get(batch[0].model), [item.sequence for item in batch]
        if isinstance(scorer, AdapterScorer):
            return scorer.forward_for(sequences, [item.model.community for item in batch])
        return scorer.forward(sequences)

    def close(self) -> None:
        """End the thread once its batch is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)
