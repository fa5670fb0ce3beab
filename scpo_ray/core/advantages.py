"""From rewards of whole responses to what each token is praised for.

Tensors have one row per response and one column per token position; `mask` is true on a response's own tokens, which stand
at the row's start, its end-of-sequence token included.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scpo_ray.core.kl import KLEstimator, kl_estimate


def shaped_rewards(
    *,
    scores: Float[Tensor, " responses"],
    log_probs: Float[Tensor, "responses tokens"],
    reference_log_probs: Float[Tensor, "responses tokens"],
    mask: Bool[Tensor, "responses tokens"],
    kl_coefficient: float,
    estimator: KLEstimator = "k1",
) -> Float[Tensor, "responses tokens"]:
    """What every token costs in KL, and at a response's last token its score.

        r_t = -c · KL_t + [t = T] R

    Args:
        scores: R, reward units.
        log_probs: log π of the sampled tokens, nats.
        reference_log_probs: log π_ref of the same.
        kl_coefficient: c, reward units per nat.

    Returns:
        Zero outside the mask.

    Raises:
        ValueError: a response has no token: there is nothing that its score could praise.

    Source: SCPO, PPO stage; Ziegler et al. (2019).
    """
    last = mask.sum(dim=1) - 1
    if (last < 0).any():
        raise ValueError(f"{int((last < 0).sum())} responses have no token; leave them out of the batch")
    divergence = kl_estimate(log_probs=log_probs, reference_log_probs=reference_log_probs, estimator=estimator)
    rewards = torch.where(mask, -kl_coefficient * divergence, 0.0)
    rewards[torch.arange(len(rewards)), last] += scores.to(rewards.dtype)
    return rewards


def generalized_advantages(
    *,
    rewards: Float[Tensor, "responses tokens"],
    values: Float[Tensor, "responses tokens"],
    mask: Bool[Tensor, "responses tokens"],
    discount: float,
    trace_decay: float,
) -> tuple[Float[Tensor, "responses tokens"], Float[Tensor, "responses tokens"]]:
    """Generalised advantage estimation; the value after a response's last token is zero.

        δ_t = r_t + γ V_{t+1} - V_t        A_t = Σ_k (γλ)^k δ_{t+k}

    Args:
        values: V, the critic's value before each token was chosen.
        discount: γ in [0, 1].
        trace_decay: λ in [0, 1]; 0 trusts the critic, 1 the rewards.

    Returns:
        Advantages, and returns A + V for the critic to learn; zero outside the mask.

    Source: Schulman et al. (2016), "High-Dimensional Continuous Control Using Generalized Advantage Estimation".
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    advantages = torch.zeros_like(values)
    ahead, next_value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for position in reversed(range(values.shape[1])):
        error = rewards[:, position] + discount * next_value - values[:, position]
        ahead = torch.where(mask[:, position], error + discount * trace_decay * ahead, 0.0)
        advantages[:, position], next_value = ahead, values[:, position]
    return advantages, torch.where(mask, advantages + values, 0.0)


def whitened(
    values: Float[Tensor, "responses tokens"], mask: Bool[Tensor, "responses tokens"], *, epsilon: float = 1e-8
) -> Float[Tensor, "responses tokens"]:
    """Mean 0 and variance 1 over all masked tokens of the batch; zero outside. The variance has the mask's size below it.

    Raises:
        ValueError: the mask is empty.
    """
    count = mask.sum()
    if count == 0:
        raise ValueError("no token to whiten over")
    mean = torch.where(mask, values, 0.0).sum() / count
    centred = torch.where(mask, values - mean, 0.0)
    return centred * torch.rsqrt(centred.square().sum() / count + epsilon)


def leave_one_out_advantages(scores: Float[Tensor, "prompts samples"]) -> Float[Tensor, "prompts samples"]:
    """RLOO: a sample's score less the mean of the prompt's other samples.

    Raises:
        ValueError: fewer than two samples per prompt.

    Source: Kool et al. (2019); Ahmadian et al. (2024), "Back to Basics".
    """
    number = _num_samples(scores)
    return (scores - scores.mean(dim=1, keepdim=True)) * number / (number - 1)


def group_relative_advantages(
    scores: Float[Tensor, "prompts samples"], *, scales: bool = True, epsilon: float = 1e-6
) -> Float[Tensor, "prompts samples"]:
    """GRPO: a sample's score less its prompt's mean, over the prompt's standard deviation.

    Args:
        scales: divide by the standard deviation (n - 1 below it); without, prompts whose samples hardly differ count little.

    Raises:
        ValueError: fewer than two samples per prompt.

    Source: Shao et al. (2024), "DeepSeekMath"; without the division Liu et al. (2025), "Understanding R1-Zero-Like Training".
    """
    _num_samples(scores)
    centred = scores - scores.mean(dim=1, keepdim=True)
    return centred / (scores.std(dim=1, keepdim=True) + epsilon) if scales else centred


def _num_samples(scores: Tensor) -> int:
    number = scores.shape[1]
    if number < 2:
        raise ValueError(f"prompts need two or more samples to be compared, got {number}")
    return number
