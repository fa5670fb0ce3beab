"""Community reward models as actors: the same formatter and scorer as the pipeline, routed by community."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scpo_ray import model_files
from scpo_ray.config import FormatConfig, ScoreConfig
from scpo_ray.errors import ConfigError
from scpo_ray.ppo.actors import Call, Pool
from scpo_ray.ppo.hanging import EndsIfHung
from scpo_ray.ppo.records import Answer, Rewards
from scpo_ray.records import response_id

if TYPE_CHECKING:
    from scpo_ray.scoring import RewardScorer


class RewardActor(EndsIfHung):
    """Holds reward models by name; each is loaded once, at its first use."""

    def __init__(
        self, addresses: Mapping[str, str], format_config: FormatConfig, score_config: ScoreConfig, *, threads: int
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import torch

        torch.set_num_threads(threads)
        self._addresses, self._format_config, self._score_config = dict(addresses), format_config, score_config
        self._scorers: dict[str, RewardScorer] = {}

    def pid(self) -> int:
        """Of the actor's process."""
        return os.getpid()

    def load(self, name: str) -> None:
        """Have a model in memory.

        Raises:
            ModelError: it cannot be loaded.
        """
        from scpo_ray.scoring import RewardScorer

        if name not in self._scorers:
            self._scorers[name] = RewardScorer(
                model_files.resolve(self._addresses[name]),
                format_config=self._format_config,
                tokens_per_batch=self._score_config.tokens_per_batch,
                precision=self._score_config.precision,
            )

    def score(self, name: str, answers: Sequence[Answer]) -> Rewards:
        """Rewards of one model.

        Raises:
            ModelError: a reward is not finite; it names the response.
        """
        self.load(name)
        scores = self._scorers[name].score([answer.context for answer in answers], [answer.text for answer in answers])
        return Rewards(scores.rewards.tolist(), scores.truncated)


class Scorers:
    """A pool of reward actors. A model is always asked of the same actor, so it is in memory once."""

    def __init__(self, pool: Pool, names: Sequence[str]) -> None:
        self._pool = pool
        self._home = {name: index % len(pool) for index, name in enumerate(names)}

    def begin_load(self) -> list[Call]:
        """Start to have every model in memory; collecting it raises ModelError where one cannot be loaded."""
        return [self._pool.submit(index, "load", name) for name, index in self._home.items()]

    def score(self, wanted: Mapping[str, Sequence[Answer]]) -> dict[str, Rewards]:
        """Rewards of each model for its answers, each distinct (context, response) computed once.

        Raises:
            ConfigError: a model's name is unknown.
        """
        calls: dict[str, tuple[Any, list[int]]] = {}
        for name, answers in wanted.items():
            if name not in self._home:
                raise ConfigError(f"{name!r}: no reward model of that name; there are {', '.join(self._home)}")
            if not answers:
                continue
            distinct: dict[str, int] = {}
            keys = [response_id(answer.context, answer.text) for answer in answers]
            for key in keys:
                distinct.setdefault(key, len(distinct))
            first = {distinct[key]: answer for key, answer in reversed(list(zip(keys, answers, strict=True)))}
            unique = [first[index] for index in range(len(distinct))]
            calls[name] = (
                self._pool.submit(self._home[name], "score", name, unique),
                [distinct[key] for key in keys],
            )
        found = self._pool.collect([call for call, _ in calls.values()])
        rewards = {
            name: Rewards([each.values[index] for index in order], [each.truncated[index] for index in order])
            for (name, (_, order)), each in zip(calls.items(), found, strict=True)
        }
        return {name: rewards.get(name, Rewards([], [])) for name in wanted}
