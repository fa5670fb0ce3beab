"""Which sequences share a forward pass."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def token_budget_batches(lengths: Sequence[int], *, tokens_per_batch: int) -> list[list[int]]:
    """Indices in batches of at most `tokens_per_batch` padded tokens, longest sequences first.

    Neighbours in length share a batch. A batch that is an eighth full also ends where lengths fall a tenth below its
    longest, so that padding stays small even where there are few sequences of many lengths. The longest come first, so
    that a batch which does not fit the memory fails at once. A sequence longer than the budget gets a batch of its own.

    Raises:
        ValueError: a length or the budget is not positive.
    """
    _check_positive(lengths, tokens_per_batch)
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        size = len(batches[-1]) * longest if batches else 0
        is_full = size + longest > tokens_per_batch
        is_uneven = lengths[index] < 0.9 * longest and size >= tokens_per_batch // 8
        if not batches or is_full or is_uneven:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def packed_batches(lengths: Sequence[int], *, tokens_per_batch: int) -> list[list[int]]:
    """Indices in batches of at most `tokens_per_batch` tokens without padding, longest sequences first.

    Batches end at an even share of the tokens: without that the last could hold a few only. A sequence longer than the
    budget gets a batch of its own.

    Raises:
        ValueError: a length or the budget is not positive.
    """
    _check_positive(lengths, tokens_per_batch)
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    num_batches = max(1, -(-sum(lengths) // tokens_per_batch))
    even = -(-sum(lengths) // num_batches)
    batches: list[list[int]] = []
    size = 0
    for index in order:
        if not batches or size >= even or size + lengths[index] > tokens_per_batch:
            batches.append([])
            size = 0
        batches[-1].append(index)
        size += lengths[index]
    return batches


def micro_batches(lengths: Sequence[int], *, num_parts: int) -> list[list[int]]:
    """Indices of one global batch in exactly `num_parts` parts of similar lengths and near-equal counts.

    Sorted by length and cut evenly: part i and part i + 1 are closest, so ranks that take neighbouring parts wait
    little for one another. Parts may be empty when there are fewer items than parts.

    Raises:
        ValueError: `num_parts` is not positive.
    """
    if num_parts < 1:
        raise ValueError(f"num_parts must be positive, got {num_parts}")
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    size, larger = divmod(len(order), num_parts)
    parts, start = [], 0
    for part in range(num_parts):
        end = start + size + (part < larger)
        parts.append(order[start:end])
        start = end
    return parts


_LEAST_SHARED = 16
"""Tokens below which sharing costs more than it saves."""
_LARGEST_FAMILY = 8


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike; each keeps one of its own at least."""
    size = min(len(first), len(second)) - 1
    differs = np.asarray(first[:size]) != np.asarray(second[:size])
    return int(differs.argmax()) if differs.any() else size


def families_of(sequences: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Neighbours that begin alike, so that as many tokens as possible need not be computed again.

    A family of k sequences that begin with the same p tokens saves (k - 1) p of them.

    Returns:
        (number of sequences, tokens that they share) of each family, in order; (1, 0) for those that share nothing.
    """
    alike = [shared_length(*pair) for pair in pairwise(sequences)]
    best: list[tuple[int, int, int]] = [
        (0, 0, 0)
    ]  # of the first i: tokens saved, size and shared tokens of the last family
    for end in range(1, len(sequences) + 1):
        found = (best[end - 1][0], 1, 0)
        for size in range(2, min(end, _LARGEST_FAMILY) + 1):
            shared = min(alike[end - size : end - 1])
            if shared < _LEAST_SHARED:
                break
            found = max(found, (best[end - size][0] + (size - 1) * shared, size, shared))
        best.append(found)
    families, end = [], len(sequences)
    while end:
        _, size, shared = best[end]
        families.append((size, shared))
        end -= size
    return families[::-1]


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is not below `value`."""
    return -(-value // multiple) * multiple


def padding_share(*, num_tokens: int, num_padded_tokens: int) -> float:
    """Share of the computed tokens that were padding, in [0, 1]; 0 where nothing was computed."""
    return 1 - num_tokens / num_padded_tokens if num_padded_tokens else 0.0


def _check_positive(lengths: Sequence[int], tokens_per_batch: int) -> None:
    if tokens_per_batch < 1 or any(length < 1 for length in lengths):
        raise ValueError(
            f"lengths and tokens_per_batch must be positive, got {min(lengths, default=1)}, {tokens_per_batch}"
        )
