"""Batches that pad nothing, for ceilings. Needs torch alone."""

from collections.abc import Iterator, Sequence

import torch

from scpo_ray.core.batching import packed_batches
from scpo_ray.formatting import TokenSequence


def rectangles(sequences: Sequence[TokenSequence], *, tokens: int) -> Iterator[torch.Tensor]:
    """Batches of about `tokens` tokens in which nothing is padded: neighbours in length, cut to the shortest of them."""
    lengths = [len(sequence.input_ids) for sequence in sequences]
    for rows in packed_batches(lengths, tokens_per_batch=tokens):
        shortest = min(lengths[row] for row in rows)
        yield torch.tensor([sequences[row].input_ids[:shortest] for row in rows])
