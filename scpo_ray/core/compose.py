"""One reward for a response from those of several communities, and what else counts.

Rewards of different models have different zeros and units, so they are normalised per community first.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Composition = Literal["mixture", "max_min", "conjunction"]


def normalized(
    rewards: Float[Tensor, "responses communities"],
    *,
    mean: Float[Tensor, " communities"],
    deviation: Float[Tensor, " communities"],
) -> Float[Tensor, "responses communities"]:
    """(r - μ) / s, with each community's mean and standard deviation over responses of its validation pairs.

    Raises:
        ValueError: a deviation is not positive: a model that gives every response the same reward wants nothing.
    """
    if not (deviation > 0).all():
        raise ValueError(f"standard deviations must be positive, got {deviation.tolist()}")
    return (rewards - mean) / deviation


def composed(
    rewards: Float[Tensor, "responses communities"],
    *,
    weights: Float[Tensor, " communities"],
    composition: Composition,
) -> Float[Tensor, " responses"]:
    """What a policy for several communities is to raise.

        mixture      Σ_c w_c r_c / Σ_c w_c
        max_min      r of the community whose mean over this batch is lowest
        conjunction  Σ_c w_c log σ(r_c) / Σ_c w_c

    max_min follows the gradient of the worst-off community's mean reward: min_c E[r_c]. The conjunction is nearly flat
    where a community is content already, so that all of them must be.

    Args:
        rewards: normalised, one column per community.
        weights: w > 0; max_min treats all alike.

    Raises:
        ValueError: no community, or a weight that is not positive.

    Source: max_min: Chakraborty et al. (2024), "MaxMin-RLHF"; conjunction: Wang et al. (2024), "Transforming and Combining
    Rewards for Aligning Large Language Models".
    """
    if weights.shape != rewards.shape[1:] or not len(weights):
        raise ValueError(f"{tuple(weights.shape)} weights for {rewards.shape[1]} communities")
    if not (weights > 0).all():
        raise ValueError(f"weights must be positive, got {weights.tolist()}")
    if composition == "max_min":
        return rewards[:, rewards.mean(dim=0).argmin()]
    each = F.logsigmoid(rewards) if composition == "conjunction" else rewards
    return each @ (weights / weights.sum())


def adjusted(
    rewards: Float[Tensor, " responses"],
    *,
    lengths: Int[Tensor, " responses"],
    is_finished: Bool[Tensor, " responses"],
    clip: float | None = None,
    length_penalty: float = 0.0,
    unfinished_penalty: float = 0.0,
) -> Float[Tensor, " responses"]:
    """clip(r, ±clip) - length_penalty · tokens - unfinished_penalty · [it never ended].

    Penalties come after the clip, which would otherwise swallow them.

    Args:
        lengths: the response's tokens.
        is_finished: it ended by itself, and not at the limit.
        length_penalty: reward units per token.
    """
    if clip is not None:
        rewards = rewards.clamp(-clip, clip)
    return torch.where(is_finished, rewards, rewards - unfinished_penalty) - length_penalty * lengths.to(rewards.dtype)
