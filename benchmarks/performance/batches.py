"""Batches that pad nothing, for ceilings and for single training steps. Needs torch alone."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import torch
from torch import nn

from scpo_ray.config import OptimizationConfig
from scpo_ray.core.batching import packed_batches
from scpo_ray.formatting import TokenSequence
from scpo_ray.training.batches import InputsOf, Item, PreferenceSet
from scpo_ray.training.step import collate_items, normalizers, part_loss


def rectangles(sequences: Sequence[TokenSequence], *, tokens: int) -> Iterator[torch.Tensor]:
    """Batches of about `tokens` tokens in which nothing is padded: neighbours in length, all made as long as their mean.

    Shorter ones begin once more where they end, so that there are as many tokens as in the sequences, up to rounding.
    """
    lengths = [len(sequence.input_ids) for sequence in sequences]
    for rows in packed_batches(lengths, tokens_per_batch=tokens):
        size = round(sum(lengths[row] for row in rows) / len(rows))
        yield torch.tensor([list(islice(cycle(sequences[row].input_ids), size)) for row in rows])


def backward(model: nn.Module, items: Sequence[Item], data: PreferenceSet, inputs_of: InputsOf, *, most: int) -> int:
    """Gradients of one global batch, as a training step makes them; gives the number of its pairs.

    Args:
        data: that the items are of.
        most: tokens of a pass.
    """
    config = OptimizationConfig()
    normalizer, num_pairs = normalizers(items, config)
    lengths = [sum(len(data.sequences[index].input_ids) for index in item.responses) for item in items]
    for rows in packed_batches(lengths, tokens_per_batch=most):
        batch = collate_items([items[row] for row in rows], data, inputs_of, config)
        part_loss(model, batch, config, normalizer=normalizer, num_pairs=num_pairs).loss.backward()
    return num_pairs
