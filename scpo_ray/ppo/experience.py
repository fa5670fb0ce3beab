"""From rollouts to what learners learn from: log-probabilities side by side, shaped rewards, advantages."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scpo_ray.config import PpoConfig
from scpo_ray.core.advantages import (
    generalized_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
    shaped_rewards,
    whitened,
)
from scpo_ray.core.policy_losses import truncated_importance
from scpo_ray.errors import TrainingError
from scpo_ray.ppo.records import Experience, Rollout, Sequences


@dataclass(frozen=True)
class Evaluated:
    """A batch under engine, policy, reference and critic, [responses, tokens]; zero outside the mask."""

    sequences: Sequences
    mask: Tensor
    engine_log_probs: Tensor
    log_probs: Tensor
    reference_log_probs: Tensor
    values: Tensor | None = None

    @property
    def divergence(self) -> float:
        """From the reference, nats per response."""
        return float((self.log_probs - self.reference_log_probs).sum(dim=1).mean())


def sequences_of(rollouts: Sequence[Rollout]) -> Sequences:
    """What learners read of rollouts."""
    return Sequences(
        [rollout.prompt.token_ids for rollout in rollouts], [rollout.sample.token_ids for rollout in rollouts]
    )


def response_mask(sequences: Sequences) -> Bool[Tensor, "responses tokens"]:
    """True on every response's own tokens."""
    lengths = torch.tensor([len(response) for response in sequences.responses])
    return torch.arange(int(lengths.max())).unsqueeze(0) < lengths.unsqueeze(1)


def engine_log_probs(rollouts: Sequence[Rollout]) -> Float[Tensor, "responses tokens"]:
    """What the engines said of the tokens that they wrote, nats; zero outside.

    Raises:
        TrainingError: one of them is not finite.
    """
    found = torch.zeros(len(rollouts), max(len(rollout.sample.token_ids) for rollout in rollouts))
    for row, rollout in enumerate(rollouts):
        found[row, : len(rollout.sample.log_probs)] = torch.tensor(rollout.sample.log_probs)
    if not torch.isfinite(found).all():
        raise TrainingError(
            "a rollout engine gave a log-probability that is not finite; use ppo.engine_precision float32"
        )
    return found


def rewards_of_tokens(
    scores: Float[Tensor, " responses"], evaluated: Evaluated, *, kl_coefficient: float, config: PpoConfig
) -> Float[Tensor, "responses tokens"]:
    """The price of moving from the reference at every token and, at the last one, the score."""
    return shaped_rewards(
        scores=scores,
        log_probs=evaluated.log_probs,
        reference_log_probs=evaluated.reference_log_probs,
        mask=evaluated.mask,
        kl_coefficient=kl_coefficient,
        estimator=config.kl_estimator,
    )


def estimated(rewards: Float[Tensor, "responses tokens"], evaluated: Evaluated, config: PpoConfig) -> Experience:
    """What each token is praised for (`ppo.advantage`), and how much it counts beside the engine that wrote it."""
    mask, returns = evaluated.mask, None
    if config.advantage == "gae":
        assert evaluated.values is not None
        advantages, returns = generalized_advantages(
            rewards=rewards,
            values=evaluated.values,
            mask=mask,
            discount=config.discount,
            trace_decay=config.gae_lambda,
        )
        if config.whiten_advantages:
            advantages = whitened(advantages, mask)
    else:
        compare = leave_one_out_advantages if config.advantage == "rloo" else group_relative_advantages
        groups = rewards.sum(dim=1).view(-1, config.responses_per_prompt)  # a prompt's responses are neighbours
        advantages = torch.where(mask, compare(groups).reshape(-1, 1), 0.0)
    return Experience(
        sequences=evaluated.sequences,
        mask=mask,
        old_log_probs=evaluated.log_probs,
        advantages=advantages,
        importance=truncated_importance(
            learner_log_probs=evaluated.log_probs,
            engine_log_probs=evaluated.engine_log_probs,
            mask=mask,
            cap=config.importance_cap,
            level=config.importance_level,
        ),
        old_values=evaluated.values,
        returns=returns,
    )
