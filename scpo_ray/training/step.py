"""The training step without an engine: a micro-batch's share of its global batch's loss. Needs torch alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scpo_ray.config import OptimizationConfig
from scpo_ray.core.losses import batch_normalizer, reward_centering_loss, weighted_bradley_terry_loss
from scpo_ray.training.batches import InputsOf, Item, MicroBatch, PreferenceSet, collate

Forward = Callable[..., object]


class Part(NamedTuple):
    """A micro-batch's share of its global batch."""

    loss: Tensor
    """Scalar, with gradient."""
    margin_sum: Tensor
    """Scalar, without: of the chosen responses' rewards over the rejected ones'."""


def normalizers(batch: Sequence[Item], config: OptimizationConfig) -> tuple[float, float]:
    """(N of the weighted loss, number of pairs) of a global batch.

    A batch whose weights are all zero has no gradient under either normalisation; its N is its number of pairs.
    """
    weights = torch.tensor([pair.weight for item in batch for pair in item.pairs], dtype=torch.float64)
    num_pairs = float(len(weights))
    if not weights.sum() > 0:
        return num_pairs, num_pairs
    return batch_normalizer(weights=weights, normalization=config.normalization), num_pairs


def part_loss(
    forward: Forward, batch: MicroBatch, config: OptimizationConfig, *, normalizer: float, num_pairs: float
) -> Part:
    """What this micro-batch adds to its global batch's loss: the parts' values and gradients sum to the batch's."""
    rewards = forward(**batch.inputs).logits.squeeze(-1).float()
    chosen, rejected = rewards[batch.chosen], rewards[batch.rejected]
    loss = weighted_bradley_terry_loss(
        chosen_rewards=chosen,
        rejected_rewards=rejected,
        weights=batch.weights,
        margins=batch.margins,
        normalizer=normalizer,
    )
    if config.centering_coefficient:
        loss = loss + config.centering_coefficient * reward_centering_loss(
            chosen_rewards=chosen, rejected_rewards=rejected, normalizer=num_pairs
        )
    return Part(loss, (chosen - rejected).detach().sum())


def placeholder_loss(forward: Forward, data: PreferenceSet, inputs_of: InputsOf, config: OptimizationConfig) -> Tensor:
    """A zero loss with zero gradients, for a rank without items: every rank must join every collective."""
    shortest = min(range(len(data)), key=data.lengths.__getitem__)
    batch = collate_items(data.items[shortest : shortest + 1], data, inputs_of, config)
    device = next(iter(forward.parameters())).device if isinstance(forward, nn.Module) else torch.device("cpu")
    return forward(**batch.to(device).inputs).logits.float().sum() * 0.0


def collate_items(
    items: Sequence[Item], data: PreferenceSet, inputs_of: InputsOf, config: OptimizationConfig
) -> MicroBatch:
    """`collate` with the config's margins."""
    return collate(items, data.sequences, inputs_of, margin_per_score=config.margin_per_score)


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict]:
    """Matrices decay; biases and norms do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
