"""Which sequences share a forward pass."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.core.batching import (
    families_of,
    micro_batches,
    packed_batches,
    padding_share,
    round_up,
    shared_length,
    token_budget_batches,
)

lengths = st.lists(st.integers(1, 60), max_size=80)


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(1, 200))
def test_every_index_once_and_within_the_budget(lengths, budget):
    batches = token_budget_batches(lengths, tokens_per_batch=budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= budget or len(batch) == 1
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(lengths, reverse=True)


@settings(max_examples=50, deadline=None)
@given(lengths.filter(bool), st.integers(60, 200))
def test_a_batch_ends_only_when_full_or_when_lengths_fall(lengths, budget):
    batches = token_budget_batches(lengths, tokens_per_batch=budget)
    for batch, following in pairwise(batches):
        longest, next_length = lengths[batch[0]], lengths[following[0]]
        is_full = (len(batch) + 1) * longest > budget
        is_uneven = next_length < 0.9 * longest and len(batch) * longest >= budget // 8
        assert is_full or is_uneven


def test_token_budget_batches_by_hand():
    assert token_budget_batches([3, 9, 4, 4, 1], tokens_per_batch=9) == [[1], [2, 3], [0], [4]]
    assert token_budget_batches([50, 2], tokens_per_batch=10) == [[0], [1]]
    assert token_budget_batches([10, 10, 9, 8], tokens_per_batch=80) == [[0, 1, 2], [3]], "8 is a fifth shorter than 10"
    assert token_budget_batches([10, 9, 8], tokens_per_batch=800) == [[0, 1, 2]], "20 tokens are no eighth of 800"
    assert token_budget_batches([], tokens_per_batch=10) == []


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(1, 200))
def test_packed_batches_hold_every_index_once_within_the_budget(lengths, budget):
    batches = packed_batches(lengths, tokens_per_batch=budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in batch) <= budget or len(batch) == 1 for batch in batches)
    assert [lengths[index] for batch in batches for index in batch] == sorted(lengths, reverse=True)
    for batch, following in pairwise(batches):
        size, even = sum(lengths[index] for index in batch), -(-sum(lengths) // max(1, -(-sum(lengths) // budget)))
        assert size >= even or size + lengths[following[0]] > budget


def test_packed_batches_by_hand():
    assert packed_batches([3, 9, 4, 4, 1], tokens_per_batch=12) == [[1], [2, 3, 0], [4]], "21 tokens: two even of 11"
    assert packed_batches([5, 5, 5, 5, 5], tokens_per_batch=24) == [[0, 1, 2], [3, 4]], "not four and one"
    assert packed_batches([50, 2], tokens_per_batch=10) == [[0], [1]]
    assert packed_batches([], tokens_per_batch=10) == []


def test_padding_is_small_on_realistic_lengths():
    drawn = np.clip(np.random.default_rng(0).lognormal(4.5, 0.8, 4096), 4, 512).astype(int).tolist()
    batches = token_budget_batches(drawn, tokens_per_batch=8192)
    padded = sum(len(batch) * max(drawn[index] for index in batch) for batch in batches)
    assert 0 < padding_share(num_tokens=sum(drawn), num_padded_tokens=padded) < 0.05


@pytest.mark.parametrize(("lengths", "budget"), [([3, 0], 8), ([3], 0), ([], 0), ([-1], 4)])
def test_lengths_and_budget_must_be_positive(lengths, budget):
    with pytest.raises(ValueError, match="must be positive"):
        packed_batches(lengths, tokens_per_batch=budget)
    with pytest.raises(ValueError, match="must be positive"):
        token_budget_batches(lengths, tokens_per_batch=budget)


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(1, 12))
def test_micro_batches_cover_evenly_in_order_of_length(lengths, num_parts):
    parts = micro_batches(lengths, num_parts=num_parts)
    assert len(parts) == num_parts
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    flat = [index for part in parts for index in part]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[index] for index in flat] == sorted(lengths, reverse=True)


def test_micro_batches_by_hand():
    assert micro_batches([5, 1, 9, 9, 2], num_parts=2) == [[2, 3, 0], [4, 1]]
    assert micro_batches([5], num_parts=3) == [[0], [], []]
    with pytest.raises(ValueError, match="num_parts must be positive, got 0"):
        micro_batches([1], num_parts=0)


def test_round_up_and_padding_share():
    assert [round_up(value, 8) for value in (0, 1, 8, 9)] == [0, 8, 8, 16]
    assert padding_share(num_tokens=75, num_padded_tokens=100) == 0.25
    assert padding_share(num_tokens=0, num_padded_tokens=0) == 0.0


def test_what_two_sequences_begin_with():
    assert shared_length([1, 2, 3, 4], [1, 2, 9, 4]) == 2
    assert shared_length([1, 2, 3], [1, 2, 3]) == 2, "each keeps one of its own"
    assert shared_length([1, 2], [1, 2, 3, 4]) == 1
    assert shared_length([5], [5, 6]) == 0 and shared_length([1, 2], [3, 4]) == 0


def saved(families):
    return sum((number - 1) * shared for number, shared in families)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(14, 22), st.integers(1, 3)), max_size=9), st.randoms())
def test_families_save_as_much_as_any_way_to_part_neighbours(shapes, random):
    """Sequences begin with the same 14 to 22 tokens of three texts, which are alike in their first 15."""
    texts = [[0] * 15 + [number] * 15 for number in (1, 2, 3)]
    sequences = [[*texts[kind][:size], *(random.randrange(50, 60) for _ in range(own))] for kind, size, own in shapes]
    families = families_of(sequences)
    assert sum(number for number, _ in families) == len(sequences)
    start = 0
    for number, shared in families:
        members = sequences[start : start + number]
        start += number
        assert all(member[:shared] == members[0][:shared] and len(member) > shared for member in members)
        assert number == 1 or shared >= 16
    assert saved(families) == most_saved(sequences)


def most_saved(sequences):
    """Over every first family, and what follows it."""
    best = 0
    for size in range(1, min(len(sequences), 8) + 1):
        members = sequences[:size]
        shared = 0 if size == 1 else min(shared_length(*pair) for pair in pairwise(members))
        own = (size - 1) * shared if shared >= 16 else 0
        best = max(best, own + most_saved(sequences[size:]))
    return best


def test_an_interaction_is_not_torn_apart_by_what_all_begin_with():
    """A chat template's first tokens are everybody's; an interaction shares its context on top."""
    header, contexts = [7] * 20, ([8] * 100, [9] * 100)
    sequences = [[*header, *context, own] for context in contexts for own in (1, 2, 3)]
    assert families_of(sequences) == [(3, 120), (3, 120)]
