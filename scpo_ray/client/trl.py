"""A reward function for TRL's trainers, which asks the reward service."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from scpo_ray.client.clients import Client
from scpo_ray.errors import ServiceError
from scpo_ray.serving.schemas import CONTROL_CHARACTERS
from scpo_ray.serving.trainers import EMPTY_REWARD, Exchange, plain_response

_MAX_REQUEST_CHARS = 500_000
"""Of one request of a reward function: half of what a service bears unless its settings say otherwise."""


@dataclass(frozen=True)
class RewardFunction:
    """A community's reward model as a reward function of TRL's trainers: called with lists `prompts` and `completions`.

    Checked in TRL 1.16, `trl/trainer/grpo_trainer.py` and `trl/trainer/utils.py`: both lists have an entry per completion, all
    texts or all lists of messages; other columns and the trainer's state come as further keywords, and are ignored; logs
    name the function by `__name__`. It pickles, for trainers whose rollouts have a process of their own; a token from the
    environment does not travel with it.
    """

    url: str
    community: str
    _: KW_ONLY
    token: str | None = field(default=None, repr=False)
    scale: Literal["calibrated", "raw"] = "calibrated"
    empty_reward: float = EMPTY_REWARD
    """Of completions without text, which the service is not asked about. In units of `scale`."""
    max_responses: int = 64
    """Per request; what is more goes into further ones."""
    num_connections: int = 8
    """Requests under way at a time."""
    max_retries: int = 20
    timeout_s: float = 600.0
    """As the client's, but patient: a service that restarts should not end a training run."""

    def __post_init__(self) -> None:
        self._client().close()  # a bad address or limit fails here, not at the first step

    @property
    def __name__(self) -> str:
        return f"reward_{self.community}"

    def __call__(self, prompts: Sequence, completions: Sequence, **_: object) -> list[float]:
        """One reward per completion; completions of the same prompt go together.

        Raises:
            ServiceError: a completion is no text, or the service refuses or does not answer.
        """
        exchanges = [_exchange(*texts) for texts in zip(prompts, completions, strict=True)]
        groups: dict[str, list[int]] = {}
        for index, exchange in enumerate(exchanges):
            if not exchange.is_empty:
                groups.setdefault(json.dumps(exchange.context), []).append(index)
        batches = [part for group in groups.values() for part in self._parts(group, exchanges)]
        rewards = [self.empty_reward] * len(exchanges)
        with self._client() as client, ThreadPoolExecutor(self.num_connections) as pool:
            scores = pool.map(lambda rows: self._scores(client, [exchanges[row] for row in rows]), batches)
            for row, score in zip(itertools.chain(*batches), itertools.chain(*scores), strict=True):
                rewards[row] = score
        return rewards

    def _parts(self, rows: Sequence[int], exchanges: Sequence[Exchange]) -> Iterator[list[int]]:
        """As many responses per request as settings and the service bear, which counts a conversation with each of them."""
        part, total = list[int](), 0
        for row in rows:
            size = len(exchanges[row].response) + sum(len(message["content"]) for message in exchanges[row].context)
            if part and (len(part) == self.max_responses or total + size > _MAX_REQUEST_CHARS):
                yield part
                part, total = [], 0
            part.append(row)
            total += size
        if part:
            yield part

    def _client(self) -> Client:
        return Client(self.url, token=self.token, max_retries=self.max_retries, timeout_s=self.timeout_s)

    def _scores(self, client: Client, exchanges: Sequence[Exchange]) -> list[float]:
        responses = [exchange.response for exchange in exchanges]
        found = client.score(
            messages=exchanges[0].context, responses=responses, communities=[self.community], scale=self.scale
        )
        if len(found.communities) != 1 or len(found.communities[0].scores) != len(responses):
            raise ServiceError(f"{self.url}: not one score for each of {len(responses)} responses; check the address")
        return found.communities[0].scores


reward_function = RewardFunction
"""`reward_funcs=[reward_function(url, "Chile")]`."""


def _exchange(prompt: str | Sequence[Mapping], completion: str | Sequence[Mapping]) -> Exchange:
    """Of a completion of several messages the last is the response; those before it belong to what it answers."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    context = list(map(_message, messages))
    if isinstance(completion, str):
        return Exchange(context, plain_response(completion))
    *earlier, last = [_message(message) for message in completion] or [{"role": "assistant", "content": ""}]
    return Exchange(context + earlier, plain_response(last["content"]))


def _message(message: Mapping) -> dict[str, str]:
    content = message.get("content") or ""  # None beside tool calls
    if not isinstance(content, str):
        raise ServiceError(
            f"a message's content is {type(content).__name__}: {str(content)[:60]!r}; only texts have rewards"
        )
    return {"role": message["role"], "content": CONTROL_CHARACTERS.sub("", content)}
