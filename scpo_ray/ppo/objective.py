"""What a policy is to raise: the rewards of its communities, normalised, composed, adjusted; and what had to be counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scpo_ray.config import PpoConfig
from scpo_ray.config.ppo import Composition
from scpo_ray.core.compose import adjusted, composed, normalized
from scpo_ray.errors import ConfigError, ModelError
from scpo_ray.ppo.records import Answer, Rewards, Rollout


@dataclass(frozen=True)
class Target:
    """A policy to train: whose it is, and how their rewards make one."""

    name: str
    communities: tuple[str, ...]
    composition: Composition

    def model_of(self, rollout: Rollout) -> tuple[str, ...]:
        """Whose models a rollout is scored by."""
        return (rollout.prompt.community,) if self.composition == "routed" else self.communities


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a reward model over responses of its community's validation pairs."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Scores:
    """Rewards of a batch."""

    final: Float[Tensor, " responses"]
    """Composed and adjusted, what the policy is trained on; standard deviations."""
    normalised: dict[str, Float[Tensor, " responses"]]
    """Community -> its normalised rewards, `empty_reward` for those without text; NaN for prompts routed to others."""
    num_empty: int
    num_unfinished: int
    num_truncated: int
    """(response, model) that were too long for the model's context as its tokenizer cuts it."""


def targets(config: PpoConfig, communities: Sequence[str]) -> list[Target]:
    """The policies that the config asks for.

    Raises:
        ConfigError: a weight names an unknown community, or a composition has one community only.
    """
    unknown = [name for name in config.weights if name not in communities]
    if unknown:
        raise ConfigError(f"ppo.weights: {unknown[0]!r} is none of the communities {', '.join(communities)}")
    found = []
    for composition in config.compositions:
        if composition == "each":
            found += [Target(community, (community,), "each") for community in communities]
        elif len(communities) < 2:
            raise ConfigError(
                f"ppo.compositions: {composition} of one community ({communities[0]}); use each, or name more"
            )
        else:
            found.append(Target(composition, tuple(communities), composition))
    return found


def questions(target: Target, rollouts: Sequence[Rollout]) -> dict[str, list[int]]:
    """Community -> rows that its model must score. Responses without text are nobody's."""
    found: dict[str, list[int]] = {community: [] for community in target.communities}
    for row, rollout in enumerate(rollouts):
        if rollout.text:
            for community in target.model_of(rollout):
                found[community].append(row)
    return found


def answers(rollouts: Sequence[Rollout], rows: Sequence[int]) -> list[Answer]:
    """What scorers read of rollouts."""
    return [Answer(rollouts[row].prompt.context, rollouts[row].text) for row in rows]


def scores(
    target: Target,
    rollouts: Sequence[Rollout],
    rewards: Mapping[str, Rewards],
    *,
    scales: Mapping[str, Scale],
    config: PpoConfig,
) -> Scores:
    """One reward per response.

    Args:
        rewards: community -> rewards of the rows that `questions` names, in their order.

    Raises:
        ModelError: a reward is not finite.
    """
    asked = questions(target, rollouts)
    table = torch.full((len(rollouts), len(target.communities)), config.empty_reward, dtype=torch.float64)
    for column, community in enumerate(target.communities):
        if not asked[community]:
            continue
        values = torch.tensor(rewards[community].values, dtype=torch.float64)
        if not torch.isfinite(values).all():
            row = asked[community][int((~torch.isfinite(values)).nonzero()[0])]
            raise ModelError(
                f"{community}: reward {float(values[~torch.isfinite(values)][0])} for response {rollouts[row].text[:60]!r}; its "
                "reward model is damaged or overflows (try score.precision float32)"
            )
        scale = scales[community]
        table[asked[community], column] = normalized(
            values.unsqueeze(1),
            mean=torch.tensor([scale.mean], dtype=torch.float64),
            deviation=torch.tensor([scale.deviation], dtype=torch.float64),
        ).squeeze(1)
    if target.composition == "routed":
        own = [target.communities.index(rollout.prompt.community) for rollout in rollouts]
        one = table[torch.arange(len(rollouts)), own]
    elif target.composition == "each":
        one = table[:, 0]
    else:
        weights = torch.tensor([config.weights.get(name, 1.0) for name in target.communities], dtype=torch.float64)
        one = composed(table, weights=weights, composition=target.composition)
    is_finished = torch.tensor([rollout.sample.is_finished for rollout in rollouts])
    final = adjusted(
        one,
        lengths=torch.tensor([len(rollout.sample.token_ids) for rollout in rollouts]),
        is_finished=is_finished,
        clip=config.reward_clip,
        length_penalty=config.length_penalty,
        unfinished_penalty=config.unfinished_penalty,
    )
    is_routed_here = torch.tensor(
        [[community in target.model_of(rollout) for community in target.communities] for rollout in rollouts]
    )
    shown = torch.where(is_routed_here, table, torch.nan)
    return Scores(
        final,
        {community: shown[:, column] for column, community in enumerate(target.communities)},
        num_empty=sum(not rollout.text for rollout in rollouts),
        num_truncated=sum(sum(each.truncated) for each in rewards.values()),
        num_unfinished=int((~is_finished).sum()),
    )
