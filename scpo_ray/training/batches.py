"""From selected pairs to global batches, the same for every number of ranks and accumulation steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scpo_ray.core.batching import micro_batches
from scpo_ray.formatting import TokenSequence

InputsOf = Callable[[Sequence[TokenSequence]], Mapping[str, Any]]
"""Sequences -> what the model's forward pass takes: padded (Formatter.pad) or packed (Packer.inputs_of)."""


@dataclass(frozen=True)
class Preference:
    """One selected pair: indices into the set's sequences, and how it counts."""

    interaction_id: str
    prompt_id: str
    chosen: int
    rejected: int
    weight: float
    score_gap: float
    """score_chosen - score_rejected; 0 where the source has no scores."""


@dataclass(frozen=True)
class Item:
    """What is drawn together: an interaction or a prompt with all its pairs, or one pair."""

    responses: tuple[int, ...]
    pairs: tuple[Preference, ...]


class PreferenceSet:
    """Formatted responses and the items over them, in an order that depends on content alone."""

    def __init__(self, sequences: Sequence[TokenSequence], preferences: Sequence[Preference], *, batching: str) -> None:
        self.sequences = sequences
        self.preferences = preferences
        self.items = _items(preferences, batching)
        self.num_pairs = len(preferences)
        self._longest = [max(len(sequences[index].input_ids) for index in item.responses) for item in self.items]
        self.lengths = [sum(len(sequences[index].input_ids) for index in item.responses) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_tokens(self) -> int:
        """Tokens of one pass over the set."""
        return sum(self.lengths)

    def batches(
        self, *, batch_size: int, seed: int, first_step: int, num_steps: int, length_window: int = 1
    ) -> Iterator[list[Item]]:
        """Global batches from optimiser step `first_step` on; each epoch has its own order, one batch may be small.

        Within windows of `length_window` batches, items of similar length share a batch; 1 leaves the order to chance.
        """
        epoch, order = -1, []
        for step in range(first_step, num_steps):
            steps_per_epoch = -(-len(self.items) // batch_size)
            if step // steps_per_epoch != epoch:
                epoch = step // steps_per_epoch
                order = self._epoch(batch_size, np.random.default_rng([seed, epoch]), length_window)
            yield [self.items[index] for index in order[step % steps_per_epoch]]

    def _epoch(self, batch_size: int, random: np.random.Generator, length_window: int) -> list[list[int]]:
        """One epoch's batches as item indices: shuffled, sorted by length within windows, cut, shuffled again."""
        shuffled = random.permutation(len(self.items)).tolist()
        size = batch_size * length_window
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), size):
            window = shuffled[start : start + size]
            if length_window > 1:
                window.sort(key=self._longest.__getitem__)
            batches += [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
        return [batches[index] for index in random.permutation(len(batches))] if length_window > 1 else batches

    def split(self, batch: Sequence[Item], *, num_parts: int) -> list[list[Item]]:
        """The batch's micro-batches, items of similar length together; some may be empty."""
        longest = [max(len(self.sequences[index].input_ids) for index in item.responses) for item in batch]
        return [[batch[index] for index in part] for part in micro_batches(longest, num_parts=num_parts)]


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass: every response once, and the pairs among them."""

    inputs: dict[str, Any]
    """Of the model's forward pass, padded or packed."""
    chosen: Int[Tensor, " pairs"]
    rejected: Int[Tensor, " pairs"]
    weights: Float[Tensor, " pairs"]
    margins: Float[Tensor, " pairs"]
    num_tokens: int

    def to(self, device: torch.device) -> "MicroBatch":
        """The same batch on a device."""
        return MicroBatch(
            on_device(self.inputs, device),
            self.chosen.to(device),
            self.rejected.to(device),
            self.weights.to(device),
            self.margins.to(device),
            self.num_tokens,
        )


def on_device(inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The same inputs, their tensors on a device."""
    return {name: each.to(device) if isinstance(each, Tensor) else each for name, each in inputs.items()}


def collate(
    items: Sequence[Item],
    sequences: Sequence[TokenSequence],
    inputs_of: InputsOf,
    *,
    margin_per_score: float,
) -> MicroBatch:
    """Tensors of a micro-batch; chosen and rejected go through the model together."""
    responses = [index for item in items for index in item.responses]
    chosen, rejected, start = [], [], 0
    for item in items:
        row = {index: start + position for position, index in enumerate(item.responses)}
        chosen += [row[pair.chosen] for pair in item.pairs]
        rejected += [row[pair.rejected] for pair in item.pairs]
        start += len(item.responses)
    pairs = [pair for item in items for pair in item.pairs]
    return MicroBatch(
        inputs=dict(inputs_of([sequences[index] for index in responses])),
        chosen=torch.tensor(chosen, dtype=torch.long),
        rejected=torch.tensor(rejected, dtype=torch.long),
        weights=torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
        margins=torch.tensor([margin_per_score * pair.score_gap for pair in pairs], dtype=torch.float32),
        num_tokens=sum(len(sequences[index].input_ids) for index in responses),
    )


def _items(preferences: Sequence[Preference], batching: str) -> list[Item]:
    if batching == "pairs":
        return [Item((pair.chosen, pair.rejected), (pair,)) for pair in preferences]
    together: dict[str, list[Preference]] = {}
    for pair in preferences:
        together.setdefault(pair.prompt_id if batching == "prompts" else pair.interaction_id, []).append(pair)
    return [
        Item(tuple(dict.fromkeys(index for pair in pairs for index in (pair.chosen, pair.rejected))), tuple(pairs))
        for pairs in together.values()
    ]
