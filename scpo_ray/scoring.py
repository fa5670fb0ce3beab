"""The inner scorer: one model, many responses, one forward pass each. Needs torch and transformers alone."""

import contextlib
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from scpo_ray import models
from scpo_ray.config import FormatConfig
from scpo_ray.core.batching import families_of, packed_batches, token_budget_batches
from scpo_ray.errors import ModelError
from scpo_ray.formatting import Formatter, TokenSequence
from scpo_ray.packing import Packer, can_pack
from scpo_ray.precision import uses_bfloat16
from scpo_ray.records import Message, context_id
from scpo_ray.reloading import MappedWeights, ReplaceableWeights, kind_of
from scpo_ray.scoring_cost import ScoringCost

_CPU_TOKENS, _GPU_TOKENS = 2048, 8192


@dataclass(frozen=True)
class Scores:
    """Rewards of a list of responses, in its order."""

    rewards: Float32[np.ndarray, " responses"]
    num_tokens: list[int]
    truncated: list[bool]
    cost: ScoringCost = field(default_factory=ScoringCost)


class BatchScorer:
    """A reward model that is loaded once, and its forward passes. Threads may share it.

    Args:
        folder: the model, transformers format.
        format_config: how context and response become tokens.
        precision: auto takes bfloat16 where the device multiplies it natively; the reward head stays float32.
        device: where to compute; the GPU where there is one when unset.
        dropout: leave dropout on, as the published evaluation did.
        safetensors_only: refuse pickled weights.
    """

    def __init__(
        self,
        folder: Path,
        *,
        format_config: FormatConfig,
        precision: str = "auto",
        device: str | None = None,
        dropout: bool = False,
        safetensors_only: bool = False,
    ) -> None:
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._kind = kind_of(folder)
        loaded = models.load(folder, safetensors_only=safetensors_only)
        self._model = loaded.model.to(self._device)
        self._model.train(dropout)
        models.keep_head_float32(self._model)
        packs = self._device.type == "cpu" and not dropout and can_pack(self._model)
        self._packer = Packer(self._model) if packs else None
        self.shares = packs and self._packer is not None and self._packer.can_share
        """Whether neighbours in a batch share the tokens that they begin with."""
        self.sorts = True
        """Whether a row has its sequences by length, in place of the batch's order."""
        self._folder = folder
        self.formatter = Formatter(loaded.tokenizer, format_config)
        self._bfloat16 = uses_bfloat16(precision, self._device)
        self._turn = threading.Lock() if models.writes_in_forward(loaded.model) else contextlib.nullcontext()

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[TokenSequence]) -> Float32[np.ndarray, " sequences"]:
        """Rewards of one batch, one forward pass."""
        with self._turn, torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            if self._packer is not None:
                batch = self._packer.pack(sequences, shares=self.shares, by_length=self.sorts)
                return self._packer.rewards(batch).float().numpy()
            inputs = self.formatter.pad(sequences)
            logits = self._model(**{name: tensor.to(self._device) for name, tensor in inputs.items()}).logits
        return logits.float().squeeze(-1).cpu().numpy()

    @property
    def packs(self) -> bool:
        """Whether batches are computed without padding; they may mix lengths then."""
        return self._packer is not None


class RewardScorer(BatchScorer):
    """Scores texts in batches of a token budget.

    Args:
        tokens_per_batch: tokens of one forward pass, padding included; unset: what suits the device.
        dropout: leave dropout on, as the published evaluation did.
        others: of BatchScorer.
    """

    def __init__(
        self, folder: Path, *, tokens_per_batch: int | None = None, dropout: bool = False, **others: Any
    ) -> None:
        super().__init__(folder, dropout=dropout, **others)
        self._tokens_per_batch = tokens_per_batch or (_CPU_TOKENS if self._device.type == "cpu" else _GPU_TOKENS)
        self._draws = dropout
        self._weights: ReplaceableWeights | None = None

    def becomes(self, folder: Path, *, mapped: MappedWeights | None = None) -> bool:
        """Score with another model from now on, where that differs in nothing but its weights. No pass may be running.

        Args:
            mapped: keeps what is read, for the next time, on a CPU; unset: nothing does.

        Returns:
            False where it is another kind of model; this one is as it was.

        Raises:
            ModelError: it cannot be read.
        """
        if models.writes_in_forward(self._model) or kind_of(folder) != self._kind:
            return False
        if self._weights is None:
            self._weights = ReplaceableWeights(self._model)
        if self._device.type != "cpu":
            mapped = None  # copied into the device's memory
        elif mapped is None:
            mapped = MappedWeights(max_bytes=0)
        if not self._weights.take(folder, mapped):
            return False
        self._folder = folder
        return True

    def close(self) -> None:
        """Give its memory back now: modules refer to each other, so that it would be kept until somebody collects them."""
        self._weights = None
        self._model.to("meta")

    def forward(self, sequences: Sequence[TokenSequence]) -> Float32[np.ndarray, " sequences"]:
        """Rewards of one batch, one forward pass."""
        return self._forward(sequences)

    def score(self, contexts: Sequence[Sequence[Message]], responses: Sequence[str]) -> Scores:
        """Rewards for each (context, response).

        Raises:
            DataError: a context or response is empty.
            ModelError: a reward is not finite.
        """
        sequences = self.formatter.format(contexts, responses)
        lengths = [len(sequence.input_ids) for sequence in sequences]
        rewards = np.empty(len(sequences), dtype=np.float32)
        cost = ScoringCost(num_responses=len(sequences), num_tokens=sum(lengths))
        batches = self._batches(contexts, sequences)
        for batch, found in zip(batches, self._forward_all(batches, sequences), strict=True):
            rewards[batch] = found
            cost.num_forward_passes += 1
            sizes = [lengths[index] for index in batch]
            cost.num_padded_tokens += sum(sizes) if self.packs else len(sizes) * max(sizes)
        self.check_finite(rewards, responses)
        return Scores(rewards, lengths, [sequence.truncated for sequence in sequences], cost)

    def _batches(self, contexts: Sequence[Sequence[Message]], sequences: Sequence[TokenSequence]) -> list[list[int]]:
        """Indices of each forward pass; where tokens can be shared, the responses to a context are neighbours."""
        lengths = [len(sequence.input_ids) for sequence in sequences]
        if not self.packs:
            return token_budget_batches(lengths, tokens_per_batch=self._tokens_per_batch)
        if not self.shares:
            return packed_batches(lengths, tokens_per_batch=self._tokens_per_batch)
        together: dict[str, list[int]] = {}
        for index, context in enumerate(contexts):
            together.setdefault(context_id(context), []).append(index)
        siblings = list(together.values())
        sizes = []
        for indices in siblings:
            families = families_of([sequences[index].input_ids for index in indices])
            saved = sum((number - 1) * shared for number, shared in families)
            sizes.append(sum(lengths[index] for index in indices) - saved)
        parts = packed_batches(sizes, tokens_per_batch=self._tokens_per_batch)
        return [[index for part in batch for index in siblings[part]] for batch in parts]

    def _forward_all(
        self, batches: Sequence[Sequence[int]], sequences: Sequence[TokenSequence]
    ) -> Iterable[Float32[np.ndarray, " batch"]]:
        """Rewards of each batch, in order. On a CPU two passes run side by side on half of the threads each: the threads of
        one pass wait for each other after every product."""
        num_threads = torch.get_num_threads()
        num_passes = 2 if self._device.type == "cpu" and num_threads > 1 and len(batches) > 1 and not self._draws else 1

        def forward(batch: Sequence[int]) -> Float32[np.ndarray, " batch"]:
            if num_passes > 1:
                torch.set_num_threads(num_threads // num_passes)  # of this thread's own products
            return self.forward([sequences[index] for index in batch])

        if num_passes == 1:
            yield from map(forward, batches)
            return
        try:
            with ThreadPoolExecutor(num_passes, thread_name_prefix="forward") as threads:
                yield from threads.map(forward, batches)
        finally:
            torch.set_num_threads(num_threads)  # threads that are made later begin with what was set last, anywhere

    def check_finite(self, rewards: Float32[np.ndarray, " responses"], responses: Sequence[str]) -> None:
        """Refuse rewards that mean nothing.

        Raises:
            ModelError: one of them is not finite.
        """
        if not np.isfinite(rewards).all():
            index = int(np.argmin(np.isfinite(rewards)))
            raise ModelError(
                f"{self._folder}: reward {rewards[index]} for response {responses[index][:60]!r}; the checkpoint is "
                "damaged or overflows in this precision (try score.precision float32)"
            )
