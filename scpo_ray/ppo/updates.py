"""One optimiser step of a learner: losses of micro-batches, their gradients summed over rounds and ranks."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scpo_ray.config import PpoConfig
from scpo_ray.core.policy_losses import clipped_policy_loss, clipped_value_loss, entropy
from scpo_ray.errors import TrainingError
from scpo_ray.ppo import forward
from scpo_ray.ppo.forward import MicroBatch, RankBatch
from scpo_ray.ppo.records import CRITIC, POLICY, Experience


def ppo_losses(
    engines: Mapping[str, Any], experience: Experience, rows: Sequence[int], config: PpoConfig
) -> Callable[[MicroBatch], dict[str, Tensor]]:
    """What a micro-batch of a minibatch adds to it: losses of policy and critic, by the engine's name, and what is watched.

    Args:
        rows: the minibatch; every part is divided by its number of tokens.
    """
    num_tokens = float(experience.mask[list(rows)].sum())

    def losses(batch: MicroBatch) -> dict[str, Tensor]:
        def part(tensor: Tensor) -> Tensor:
            return tensor[batch.rows, : batch.mask.shape[1]].to(batch.mask.device)

        logits = forward.response_logits(engines[POLICY], batch, temperature=config.temperature)
        policy = clipped_policy_loss(
            log_probs=forward.log_probs_of(logits, batch),
            old_log_probs=part(experience.old_log_probs),
            advantages=part(experience.advantages),
            mask=batch.mask,
            clip_low=config.clip_range,
            clip_high=config.clip_range_high or config.clip_range,
            dual_clip=config.dual_clip,
            importance=part(experience.importance),
            num_tokens=num_tokens,
        )
        spread = entropy(logits if config.entropy_coefficient else logits.detach(), batch.mask, num_tokens=num_tokens)
        found = {
            POLICY: policy.loss - config.entropy_coefficient * spread,
            "clipped_share": policy.clipped_share,
            "step_divergence": policy.divergence,
            "entropy": spread.detach(),
        }
        if experience.returns is not None and experience.old_values is not None:
            found[CRITIC] = clipped_value_loss(
                values=forward.values_of(engines[CRITIC], batch),
                old_values=part(experience.old_values),
                returns=part(experience.returns),
                mask=batch.mask,
                clip=config.value_clip,
                num_tokens=num_tokens,
            )
        return found

    return losses


def optimise(
    engines: Mapping[str, Any],
    batches: Iterable[RankBatch],
    losses: Callable[[MicroBatch], dict[str, Tensor]],
    *,
    name: str,
) -> dict[str, float]:
    """Step every engine that `losses` names; sums over micro-batches and ranks of all that it returns.

    Raises:
        TrainingError: one of them is not finite (on every rank).
    """
    num_ranks = dist.get_world_size()
    totals: dict[str, float] = {}
    for batch in batches:
        found = losses(batch)
        for engine_name, engine in engines.items():
            if engine_name in found:
                engine.set_gradient_accumulation_boundary(batch.is_last)
                # DeepSpeed averages over ranks; the parts are to be summed. A placeholder joins with nothing.
                engine.backward(found[engine_name] * (0.0 if batch.is_placeholder else float(num_ranks)))
        for key, value in found.items():
            total = f"{key}_loss" if key in engines else key
            totals[total] = totals.get(total, 0.0) + (0.0 if batch.is_placeholder else float(value.detach()))
    for engine_name, engine in engines.items():
        if f"{engine_name}_loss" in totals:
            totals[f"{engine_name}_grad_norm"] = _step(engine) / num_ranks
    device = next(iter(engines.values())).device
    summed = torch.tensor(list(totals.values()), dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    result = dict(zip(totals, summed.tolist(), strict=True))
    for key, value in result.items():
        if not math.isfinite(value):
            raise TrainingError(f"{name}: {key} is {value}; lower the learning rate or use precision float32")
    return result


def _step(engine: Any) -> float:
    """One optimiser step; the gradient's norm before clipping, the same on every rank."""
    if engine.zero_optimization_stage() == 0:  # the only stage that does not tell
        norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
        engine.step()
        return float(norm)
    engine.step()
    return float(engine.get_global_grad_norm())
