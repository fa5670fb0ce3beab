"""Losses of policies and critics, as sums over a part of a batch divided by the whole batch's number of tokens.

As with reward models (`core.losses`), the parts' losses add up to the batch's, whatever the ranks and accumulation steps.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """A part's loss, and how far the policy has moved since it was sampled from."""

    loss: Float[Tensor, ""]
    clipped_share: Float[Tensor, ""]
    """Sum over the part's tokens whose gradient the clip has cut, over the batch's tokens."""
    divergence: Float[Tensor, ""]
    """Sum of the k3 estimate of KL(old ‖ new), over the batch's tokens; nats per token."""


def clipped_policy_loss(
    *,
    log_probs: Float[Tensor, "responses tokens"],
    old_log_probs: Float[Tensor, "responses tokens"],
    advantages: Float[Tensor, "responses tokens"],
    mask: Bool[Tensor, "responses tokens"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    importance: Float[Tensor, "responses tokens"] | None = None,
    num_tokens: float | None = None,
) -> PolicyLoss:
    """PPO's pessimistic surrogate.

        ρ_t = exp(log π - log π_old)        L = -(1/N) Σ u_t min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A)

    where A < 0, with a dual clip c: max(that minimum, c A), so that a token that became far more likely cannot dominate.

    Args:
        log_probs: log π of the sampled tokens under the policy in training, nats.
        old_log_probs: those of the learner when the batch was rolled out; constant.
        advantages: A; constant.
        dual_clip: c > 1, or None.
        importance: u, see `truncated_importance`; ones when unset.
        num_tokens: N, tokens of the global batch; those of this mask when unset.

    Returns:
        Loss, reward units; negative where the surrogate is above zero.

    Raises:
        ValueError: shapes differ, a clip is out of range, or N is not positive.

    Source: Schulman et al. (2017), "Proximal Policy Optimization Algorithms"; dual clip: Ye et al. (2020).
    """
    _check_shapes(log_probs, old_log_probs, advantages, mask, *(() if importance is None else (importance,)))
    if not 0 < clip_low < 1 or not clip_high > 0 or (dual_clip is not None and not dual_clip > 1):
        raise ValueError(
            f"expected 0 < clip_low < 1, clip_high > 0, dual_clip > 1; got {clip_low}, {clip_high}, {dual_clip}"
        )
    number = _number(num_tokens, mask)
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0)
    ratio = log_ratio.exp()
    plain, clipped = ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    surrogate = torch.minimum(plain, clipped)
    is_cut = clipped < plain
    if dual_clip is not None:
        floor = dual_clip * advantages
        is_below = (advantages < 0) & (surrogate < floor)
        surrogate, is_cut = torch.where(is_below, floor, surrogate), is_cut | is_below
    if importance is not None:
        surrogate = surrogate * importance
    return PolicyLoss(
        loss=-torch.where(mask, surrogate, 0.0).sum() / number,
        clipped_share=(is_cut & mask).sum() / number,
        divergence=(log_ratio.expm1() - log_ratio).detach().sum() / number,
    )


def clipped_value_loss(
    *,
    values: Float[Tensor, "responses tokens"],
    old_values: Float[Tensor, "responses tokens"],
    returns: Float[Tensor, "responses tokens"],
    mask: Bool[Tensor, "responses tokens"],
    clip: float | None = 0.2,
    num_tokens: float | None = None,
) -> Float[Tensor, ""]:
    """Half the squared error of the critic; with a clip ε the worse of it and that of a value near the old one.

        L = (1/2N) Σ max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²)

    Args:
        values: V of the critic in training, reward units.
        old_values: V when the batch was rolled out; constant.
        returns: R, see `generalized_advantages`; constant.

    Raises:
        ValueError: shapes differ, or N is not positive.

    Source: Schulman et al. (2017), OpenAI baselines.
    """
    _check_shapes(values, old_values, returns, mask)
    error = (values - returns).square()
    if clip is not None:
        near = torch.clamp(values, old_values - clip, old_values + clip)
        error = torch.maximum(error, (near - returns).square())
    return torch.where(mask, error, 0.0).sum() / (2 * _number(num_tokens, mask))


def entropy(
    logits: Float[Tensor, "responses tokens vocabulary"],
    mask: Bool[Tensor, "responses tokens"],
    *,
    num_tokens: float | None = None,
) -> Float[Tensor, ""]:
    """Mean entropy of the next token's distribution over the batch's tokens, nats."""
    log_probs = logits.log_softmax(dim=-1)
    of_tokens = -(log_probs.exp() * log_probs).sum(dim=-1)
    return torch.where(mask, of_tokens, 0.0).sum() / _number(num_tokens, mask)


def truncated_importance(
    *,
    learner_log_probs: Float[Tensor, "responses tokens"],
    engine_log_probs: Float[Tensor, "responses tokens"],
    mask: Bool[Tensor, "responses tokens"],
    cap: float = 2.0,
    level: Literal["token", "response"] = "token",
) -> Float[Tensor, "responses tokens"]:
    """How much more likely the learner finds what the engine has sampled: min(π_learner / π_engine, cap); zero outside.

    Corrects for engines that compute otherwise than learners do, or that are a step behind. Of a response, all tokens share
    the product of their ratios.

    Raises:
        ValueError: shapes differ, or the cap is below 1.

    Source: Yao et al. (2025), "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training".
    """
    _check_shapes(learner_log_probs, engine_log_probs, mask)
    if not cap >= 1:
        raise ValueError(f"the cap must be 1 or more, got {cap}: it would cut tokens on which both agree")
    log_ratio = torch.where(mask, learner_log_probs - engine_log_probs, 0.0)
    if level == "response":
        log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio)
    return torch.where(mask, log_ratio.exp().clamp(max=cap), 0.0)


def _check_shapes(*tensors: Tensor) -> None:
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ValueError(f"expected equal shapes, got {', '.join(str(tuple(tensor.shape)) for tensor in tensors)}")


def _number(num_tokens: float | None, mask: Tensor) -> float:
    number = float(mask.sum()) if num_tokens is None else num_tokens
    if not number > 0:
        raise ValueError(f"the number of tokens must be positive, got {number:g}")
    return number
