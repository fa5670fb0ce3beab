"""Rewards of (model, text), each computed once: from memory, from another request's batch, or in the next one."""

import asyncio
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from scpo_ray.config.serving import ServeConfig
from scpo_ray.errors import ModelError
from scpo_ray.formatting import Formatter, TokenSequence
from scpo_ray.records import Message
from scpo_ray.serving.batching import Batcher
from scpo_ray.serving.cache import Reward, RewardCache, reward_key, text_key
from scpo_ray.serving.catalog import ServedModel
from scpo_ray.serving.loading import LoadedModels, num_passes, tokens_per_batch

_TEXTS_AT_A_TIME = 32


@dataclass(frozen=True)
class Text:
    """A response in its context; without a context, a text that has the model's own template in it already."""

    context: Sequence[Message]
    response: str


@dataclass(eq=False)
class Pending:
    """A reward on its way, and how many requests wait for it."""

    future: "asyncio.Future[float]"
    sequence: TokenSequence
    num_waiting: int = 1

    @property
    def reward(self) -> Reward:
        """Once it is there.

        Raises:
            ScpoError: what kept the model from giving it.
        """
        return Reward(self.future.result(), self.sequence.truncated, len(self.sequence.input_ids))


class Rewards:
    """Use it from one event loop."""

    def __init__(self, config: ServeConfig, models: LoadedModels) -> None:
        num_threads = torch.get_num_threads()
        self.batcher = Batcher(
            models,
            tokens_per_batch(config),
            config.max_queued,
            num_passes=num_passes(config, num_threads=num_threads),
            num_threads=num_threads,
        )
        self.cache = RewardCache(config.max_cached_rewards)
        self._formatters = models.formatters
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._pending: dict[bytes, Pending] = {}
        self._num_tokenizing = 0
        """Responses times models that are on their way to the batcher."""

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which most of what waits will have been computed."""
        return self.batcher.retry_after_s(self.batcher.num_queued + self._num_tokenizing)

    async def of(self, models: Sequence[ServedModel], texts: Sequence[Text]) -> list[list[Reward]]:
        """Every model's rewards of all texts.

        Raises:
            BusyError: too much waits; nothing of this is queued.
            DataError: more is asked for than may ever wait, or a model's chat template refuses a context.
            ModelError: a model cannot be loaded, or gives no number.
        """
        text_keys = [text_key(text.context, text.response) for text in texts]
        keys = [[reward_key(model.identity, key) for key in text_keys] for model in models]
        found: dict[bytes, Reward] = {}
        awaited: dict[bytes, Pending] = {}
        try:
            self._take(keys, found, awaited)
            missing = [
                model
                for model, row in zip(models, keys, strict=True)
                if not all(key in found or key in awaited for key in row)
            ]
            if missing:
                number = sum(key not in found and key not in awaited for row in keys for key in row)
                self.batcher.check_room(number, num_coming=self._num_tokenizing)
                self._num_tokenizing += number
                try:
                    tokens = await self._tokenized(missing, texts)
                finally:
                    self._num_tokenizing -= number
                self._take(keys, found, awaited)  # what others have begun while we tokenised
                self._queue(models, keys, {*found, *awaited}, tokens, awaited)
            if awaited:
                await asyncio.wait([one.future for one in awaited.values()])
            found |= {key: one.reward for key, one in awaited.items()}
        finally:
            _leave(awaited.values())
        rewards = [[found[key] for key in row] for row in keys]
        for model, row in zip(models, rewards, strict=True):
            _check_finite(model, row)
        return rewards

    def _take(self, keys: Sequence[Sequence[bytes]], found: dict[bytes, Reward], awaited: dict[bytes, Pending]) -> None:
        """What is remembered, and what is on its way for somebody else."""
        for key in (key for row in keys for key in row if key not in found and key not in awaited):
            if (known := self.cache.get(key)) is not None:
                found[key] = known
            elif (one := self._pending.get(key)) is not None and not one.future.cancelled():
                awaited[key] = one
                one.num_waiting += 1

    async def _tokenized(self, models: Sequence[ServedModel], texts: Sequence[Text]) -> dict[str, list[TokenSequence]]:
        """Formatter's key -> tokens of all texts: once for all models that read alike, and a few texts at a time, so that
        a long request neither holds up others nor outlives its caller."""
        loop = asyncio.get_running_loop()
        found: dict[str, list[TokenSequence]] = {}
        for model in models:
            key = await loop.run_in_executor(self._tokenizing, self._formatters.key, model)
            if key in found:
                continue
            formatter = await loop.run_in_executor(self._tokenizing, self._formatters.get, model)
            tokens: list[TokenSequence] = []
            for start in range(0, len(texts), _TEXTS_AT_A_TIME):
                part = texts[start : start + _TEXTS_AT_A_TIME]
                tokens += await loop.run_in_executor(self._tokenizing, _tokens, formatter, part)
            found[key] = tokens
        return found

    def _queue(
        self,
        models: Sequence[ServedModel],
        keys: Sequence[Sequence[bytes]],
        taken: set[bytes],
        tokens: dict[str, list[TokenSequence]],
        awaited: dict[bytes, Pending],
    ) -> None:
        """The rest is computed for this request; a text that it has twice, once."""
        fresh: dict[bytes, tuple[ServedModel, TokenSequence]] = {}
        for model, row in zip(models, keys, strict=True):
            for place, key in enumerate(row):
                if key not in taken and key not in fresh:
                    fresh[key] = (model, tokens[self._formatters.key(model)][place])
        if not fresh:
            return
        futures = self.batcher.submit(list(fresh.values()))
        for (key, (_, sequence)), future in zip(fresh.items(), futures, strict=True):
            one = self._pending[key] = awaited[key] = Pending(future, sequence)
            future.add_done_callback(lambda _, key=key, one=one: self._finish(key, one))

    def _finish(self, key: bytes, one: Pending) -> None:
        if self._pending.get(key) is one:
            del self._pending[key]
        future = one.future
        if not future.cancelled() and future.exception() is None and math.isfinite(future.result()):
            self.cache.put(key, one.reward)

    def close(self) -> None:
        """End the threads."""
        self.batcher.close()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)


def _tokens(formatter: Formatter, texts: Sequence[Text]) -> list[TokenSequence]:
    if all(text.context for text in texts):
        return formatter.format([text.context for text in texts], [text.response for text in texts])
    return [formatter.whole(text.response) for text in texts]


def _leave(pending: Iterable[Pending]) -> None:
    """What nobody waits for any longer is not computed."""
    for one in pending:
        one.num_waiting -= 1
        if one.num_waiting == 0 and not one.future.done():
            one.future.cancel()


def _check_finite(model: ServedModel, rewards: Sequence[Reward]) -> None:
    for reward in rewards:
        if not math.isfinite(reward.value):
            raise ModelError(
                f"{model.community}: a reward is {reward.value}; its model is damaged, take it out of service"
            )
