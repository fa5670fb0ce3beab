"""What passes between the controller and its actors. Plain lists and tensors: everything pickles."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scpo_ray.records import Message

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

POLICY, CRITIC = "policy", "critic"
"""A learner's engines."""


@dataclass(frozen=True)
class Prompt:
    """A context that policies answer."""

    prompt_id: str
    """Of its context: a conversation's turns are prompts of their own."""
    prompt_group: str
    """Its conversation's, which near-duplicate opening prompts share: what intervals are clustered by."""
    community: str
    """Whose prompt it is: the community whose annotators rated answers to it."""
    context: Sequence[Message]
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """What an engine wrote."""

    token_ids: tuple[int, ...]
    """With the end-of-sequence token, where it ended by itself."""
    log_probs: tuple[float, ...]
    """Of each token under the engine's tempered distribution, nats."""
    is_finished: bool
    version: int
    """Of the weights that wrote it."""


@dataclass(frozen=True)
class Rollout:
    """A prompt and one response to it."""

    prompt: Prompt
    sample: Sample
    text: str
    """The response as people and reward models read it: without special tokens, stripped."""

    @property
    def num_tokens(self) -> int:
        """Prompt and response."""
        return len(self.prompt.token_ids) + len(self.sample.token_ids)


@dataclass(frozen=True)
class Answer:
    """A response to score."""

    context: Sequence[Message]
    text: str


@dataclass(frozen=True)
class Rewards:
    """Of a list of answers, in its order."""

    values: list[float]
    truncated: list[bool]
    """The reward model's context was too short for the whole of it."""


@dataclass(frozen=True)
class Sequences:
    """(prompt, response) token ids: what learners read."""

    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each pair."""
        return [len(prompt) + len(response) for prompt, response in zip(self.prompts, self.responses, strict=True)]


@dataclass(frozen=True)
class Experience:
    """A batch to learn from, tensors of shape [responses, tokens]; see `core.advantages` for the mask."""

    sequences: Sequences
    mask: "Bool[Tensor, 'responses tokens']"
    old_log_probs: "Float[Tensor, 'responses tokens']"
    advantages: "Float[Tensor, 'responses tokens']"
    importance: "Float[Tensor, 'responses tokens']"
    old_values: "Float[Tensor, 'responses tokens'] | None" = None
    returns: "Float[Tensor, 'responses tokens'] | None" = None


@dataclass(frozen=True)
class Canaries:
    """Sequences whose log-probabilities a learner has computed with the weights that it published."""

    token_ids: tuple[tuple[int, ...], ...]
    log_probs: tuple[tuple[float, ...], ...]
    """Of every token but the first, at temperature 1, nats."""


@dataclass(frozen=True)
class WeightUpdate:
    """A policy's weights on their way to the engines."""

    version: int
    chunks: tuple[object, ...]
    """Object references, each to a list of (name, tensor)."""
    checksum: str
    num_bytes: int
    canaries: Canaries = field(repr=False)


@dataclass(frozen=True)
class SyncReport:
    """What an engine says after an update."""

    version: int
    checksum: str
    """Of the tensors as they came in."""
    log_probs: tuple[tuple[float, ...], ...] = field(repr=False)
    """Of the canaries, computed with the new weights."""
