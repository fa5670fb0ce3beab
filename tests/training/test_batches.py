"""Global batches: every item once an epoch, the same order wherever the training starts."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray import models
from scpo_ray.config import FormatConfig
from scpo_ray.formatting import Formatter, TokenSequence
from scpo_ray.training.batches import Item, Preference, PreferenceSet, collate


def _pair(chosen, rejected, *, interaction="i", prompt="p", weight=1.0, gap=0.0):
    return Preference(
        interaction_id=interaction, prompt_id=prompt, chosen=chosen, rejected=rejected, weight=weight, score_gap=gap
    )


def _sequences(lengths):
    return [TokenSequence(list(range(length)), None, False) for length in lengths]


def _set(num_items, lengths=None):
    lengths = lengths or [1 + index % 7 for index in range(2 * num_items)]
    preferences = [_pair(2 * index, 2 * index + 1, interaction=f"i{index}") for index in range(num_items)]
    return PreferenceSet(_sequences(lengths), preferences, batching="interactions")


def _ids(batches):
    return [[item.pairs[0].interaction_id for item in batch] for batch in batches]


def test_items_hold_a_response_once_by_interaction_or_twice_by_pair():
    preferences = [
        _pair(3, 1, interaction="x"),
        _pair(5, 4, interaction="y"),
        _pair(3, 2, interaction="x"),
        _pair(1, 2, interaction="x"),
    ]
    sequences = _sequences([1, 2, 3, 4, 5, 6])
    grouped = PreferenceSet(sequences, preferences, batching="interactions")
    assert [item.responses for item in grouped.items] == [(3, 1, 2), (5, 4)]
    assert [item.pairs for item in grouped.items] == [
        (preferences[0], preferences[2], preferences[3]),
        (preferences[1],),
    ]
    assert (len(grouped), grouped.num_pairs, grouped.lengths, grouped.num_tokens) == (2, 4, [9, 11], 20)
    single = PreferenceSet(sequences, preferences, batching="pairs")
    assert [item.responses for item in single.items] == [(3, 1), (5, 4), (3, 2), (1, 2)]
    assert (len(single), single.num_pairs, single.num_tokens) == (4, 4, 6 + 11 + 7 + 5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 3))
def test_every_item_once_an_epoch(num_items, batch_size, seed):
    data = _set(num_items)
    steps = -(-num_items // batch_size)
    batches = _ids(data.batches(batch_size=batch_size, seed=seed, first_step=0, num_steps=3 * steps))
    assert len(batches) == 3 * steps
    for epoch in range(3):
        seen = [name for batch in batches[epoch * steps : (epoch + 1) * steps] for name in batch]
        assert sorted(seen) == sorted(f"i{index}" for index in range(num_items))
    assert all(len(batch) == batch_size for batch in batches[: steps - 1])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 20))
def test_a_resumed_training_sees_the_batches_it_would_have_seen(num_items, batch_size, first_step):
    data = _set(num_items)
    whole = _ids(data.batches(batch_size=batch_size, seed=1, first_step=0, num_steps=20))
    resumed = _ids(data.batches(batch_size=batch_size, seed=1, first_step=first_step, num_steps=20))
    assert resumed == whole[first_step:]


def test_epochs_and_seeds_have_their_own_order():
    data = _set(40)
    first, second = _ids(data.batches(batch_size=40, seed=0, first_step=0, num_steps=2))
    (other,) = _ids(data.batches(batch_size=40, seed=1, first_step=0, num_steps=1))
    assert len({tuple(first), tuple(second), tuple(other), tuple(f"i{index}" for index in range(40))}) == 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 6))
def test_split_covers_the_batch_with_similar_lengths_together(longest, num_parts):
    data = _set(len(longest), [length for longer in longest for length in (longer, 1)])
    parts = data.split(data.items, num_parts=num_parts)
    assert len(parts) == num_parts
    flat = [item for part in parts for item in part]
    assert sorted(item.responses for item in flat) == sorted(item.responses for item in data.items)
    assert [longest[item.responses[0] // 2] for item in flat] == sorted(longest, reverse=True)


def test_collate_by_hand():
    tokenizer = models.train_tokenizer(["a b c d"], vocab_size=20, architecture="bert")
    formatter = Formatter(tokenizer, FormatConfig())
    sequences = formatter.format([[{"role": "user", "content": "a"}]] * 4, ["b", "b c", "b c d", "d"])
    items = [
        Item((2, 0), (_pair(2, 0, weight=0.5, gap=10.0),)),
        Item((3, 1, 0), (_pair(1, 3, gap=-4.0), _pair(0, 1, weight=0.25))),
    ]
    batch = collate(items, sequences, partial(formatter.pad, multiple=4), margin_per_score=0.1)
    rows = [sequences[index].input_ids for index in (2, 0, 3, 1, 0)]
    mask = batch.inputs["attention_mask"].bool()
    assert [row[keep].tolist() for row, keep in zip(batch.inputs["input_ids"], mask, strict=True)] == rows
    assert batch.inputs["input_ids"].shape == (5, 8)
    assert (batch.chosen.tolist(), batch.rejected.tolist()) == ([0, 3, 4], [1, 2, 3])
    assert batch.weights.tolist() == [0.5, 1.0, 0.25]
    assert batch.margins.tolist() == pytest.approx([1.0, -0.4, 0.0])
    assert batch.num_tokens == 7 + 5 + 5 + 6 + 5
    moved = batch.to(torch.device("cpu"))
    assert moved.num_tokens == batch.num_tokens
    assert all(torch.equal(moved.inputs[name], batch.inputs[name]) for name in batch.inputs)
    assert moved.inputs.keys() == {"input_ids", "attention_mask", "token_type_ids"}
