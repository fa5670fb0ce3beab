"""Forward passes without padding: a batch's sequences end to end in one row, and nothing computed that no reward reads.

Every token goes through the linear layers once; attention runs within each sequence (those of equal length together).
A reward reads one token of each sequence, so the last layer's MLP, most of that layer, is computed for these tokens alone
(narrowing.py). In a decoder what a token becomes depends on those before it alone: neighbours that begin alike, as the
responses to one context do, share what they begin with. Rewards equal those of padded batches up to rounding.

This is for CPUs, for architectures that take attention from transformers' registry and add nothing to it (no sliding
windows), and for DeBERTa v2 and v3 without a convolution, whose scores depend on distances (disentangled.py); others, and
GPUs, get padded batches.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from scpo_ray.attention import attend
from scpo_ray.core.batching import families_of
from scpo_ray.disentangled import attend_in_runs
from scpo_ray.formatting import TokenSequence
from scpo_ray.models import writes_in_forward
from scpo_ray.narrowing import narrow_decoder, narrow_encoder

_ATTENTION = "scpo_packed"
_LARGEST_TENSOR, _LEAST_TOKENS = 24 * 2**20, 2048
"""Bytes of a layer's MLP's inner values in one pass of training. Larger passes take more memory, and are no faster
(docs/performance.md)."""

_ENCODERS = ("bert", "roberta", "xlm-roberta", "deberta-v2")
_DECODERS = ("llama", "mistral", "qwen2", "qwen3")


class Run(NamedTuple):
    """Neighbours of equal length."""

    number: int
    length: int
    """Tokens of each."""


class Family(NamedTuple):
    """Neighbours that begin alike: what they share, once, and after it what each has of its own."""

    shared: int
    """Tokens."""
    own: tuple[int, ...]
    """Tokens of each."""

    @property
    def num_tokens(self) -> int:
        """In the row."""
        return self.shared + sum(self.own)


@dataclass(frozen=True)
class PackedBatch:
    """Sequences end to end."""

    tokens: dict[str, Int[Tensor, "1 tokens"]]
    """input_ids, position_ids, and token_type_ids where the model has them."""
    runs: list[Run | Family]
    read: Int[Tensor, " sequences"]
    """Where each sequence's reward is read."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What the model's forward pass takes."""
        return {**self.tokens, "runs": self.runs, "read": self.read}


class Packer:
    """Packed passes through one reward model, whose attention it replaces: from then on its forward pass takes packed inputs.

    Threads may share it. Gradients flow; nothing is dropped out, and layers cannot be checkpointed.

    Args:
        model: one that `can_pack`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._is_encoder = model.config.model_type in _ENCODERS
        self._padding_position = (
            model.base_model.embeddings.padding_idx if "roberta" in model.config.model_type else None
        )
        self._here = threading.local()
        if model.config.model_type == "deberta-v2":
            attend_in_runs(model, lambda: self._here.runs)
        else:
            AttentionInterface.register(_ATTENTION, _attend)
            model.config._attn_implementation = _ATTENTION
        if self._is_encoder:
            narrow_encoder(model, lambda: self._here.read)
            if getattr(model.base_model, "pooler", None) is not None:  # takes the first token of every row
                model.base_model.pooler.register_forward_pre_hook(lambda _, inputs: (inputs[0].transpose(0, 1),))
        else:
            narrow_decoder(model.base_model.layers[-1], lambda: self._here.read)
        model.forward = self._forward

    @property
    def can_share(self) -> bool:
        """Whether sequences that begin alike can share what they begin with."""
        return not self._is_encoder

    def pack(self, sequences: Sequence[TokenSequence], *, shares: bool = False, by_length: bool = False) -> PackedBatch:
        """One batch.

        Args:
            shares: neighbours that begin alike have that in the row once, where the architecture allows it.
            by_length: whether the row has its sequences by length, in place of their order.
        """
        ids = [torch.tensor(sequence.input_ids) for sequence in sequences]
        pieces: list[tuple[int, int, int]] = []  # a sequence, and from where to where it is in the row
        parts: list[Run | Family] = []
        read, size = [0] * len(ids), 0
        for shared, members in self._families(sequences, shares=shares, by_length=by_length):
            start = size
            if shared:
                pieces.append((members[0], 0, shared))
                size += shared
            for index in members:
                place = self._read(ids[index])
                read[index] = place + (size - shared if place >= shared else start)
                pieces.append((index, shared, len(ids[index])))
                size += len(ids[index]) - shared
            own = tuple(len(ids[index]) - shared for index in members)
            parts.append(Family(shared, own) if shared else Run(1, own[0]))
        rows = {"input_ids": ids, "position_ids": [self._positions(each) for each in ids]}
        if sequences[0].token_type_ids is not None:
            rows["token_type_ids"] = [torch.tensor(sequence.token_type_ids) for sequence in sequences]
        tokens = {
            name: torch.cat([row[index][start:end] for index, start, end in pieces]).unsqueeze(0)
            for name, row in rows.items()
        }
        return PackedBatch(tokens, _merged(parts), torch.tensor(read))

    def _families(
        self, sequences: Sequence[TokenSequence], *, shares: bool, by_length: bool
    ) -> list[tuple[int, range]]:
        """(tokens that are shared, which sequences share them), in the row's order."""
        families = families_of([sequence.input_ids for sequence in sequences]) if shares and self.can_share else []
        found, end = [], 0
        for number, shared in families or [(1, 0)] * len(sequences):
            found.append((shared, range(end, end + number)))
            end += number
        if by_length:
            found.sort(key=lambda each: (each[0], *(len(sequences[index].input_ids) for index in each[1])))
        return found

    def inputs_of(self, sequences: Sequence[TokenSequence]) -> dict[str, Any]:
        """One batch, as the model's forward pass takes it."""
        return self.pack(sequences, shares=True, by_length=True).inputs

    def _positions(self, ids: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens"]:
        """As transformers numbers them: RoBERTa counts what is not padding, wherever it stands."""
        if self._padding_position is None:
            return torch.arange(len(ids))
        counts = ids != self._padding_position
        return torch.cumsum(counts, 0) * counts + self._padding_position

    def _read(self, ids: Int[Tensor, " tokens"]) -> int:
        """As transformers pools them: a decoder's last token that is not the one it pads with, which may end every text."""
        if self._is_encoder:
            return 0
        counts = torch.nonzero(ids != self._model.config.pad_token_id)
        return int(counts[-1]) if len(counts) else 0

    def rewards(self, batch: PackedBatch) -> Float[Tensor, " sequences"]:
        """The reward head's output for every sequence."""
        return self._forward(**batch.inputs).logits.squeeze(-1)

    def _forward(
        self,
        *,
        input_ids: Int[Tensor, "1 tokens"],
        position_ids: Int[Tensor, "1 tokens"],
        runs: Sequence[Run | Family],
        read: Int[Tensor, " sequences"],
        token_type_ids: Int[Tensor, "1 tokens"] | None = None,
        **_: object,
    ) -> SequenceClassifierOutput:
        """In place of the model's own; adapters around it pass on a few settings that say nothing here."""
        kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        self._here.read, self._here.runs = read, runs
        try:
            found = self._model.base_model(
                input_ids=input_ids, position_ids=position_ids, **kinds, use_cache=False, runs=runs
            )
        finally:
            self._here.read = self._here.runs = None
        states = found.last_hidden_state[0]
        if not self._is_encoder:
            rewards = self._model.score(states[read])
        elif self._model.config.model_type == "bert":
            rewards = self._model.classifier(found.pooler_output)
        elif self._model.config.model_type == "deberta-v2":
            rewards = self._model.classifier(self._model.pooler(states.unsqueeze(1)))
        else:
            rewards = self._model.classifier(states.unsqueeze(1))
        return SequenceClassifierOutput(logits=rewards.reshape(-1, 1))


def tokens_per_pass(intermediate_size: int) -> int:
    """How many tokens of a batch train in one pass, at most; longer items go alone."""
    return max(_LEAST_TOKENS, _LARGEST_TENSOR // (4 * intermediate_size))


def can_pack(model: PreTrainedModel) -> bool:
    """Whether `Packer` computes this model as it is meant."""
    config = model.config
    layers = getattr(config, "layer_types", None) or ("full_attention",)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return (
        config.model_type in (*_ENCODERS, *_DECODERS)
        and not getattr(config, "is_decoder", False)
        and getattr(config, "is_causal", None) is None  # decoders that are told to look both ways
        and not getattr(config, "chunk_size_feed_forward", 0)
        and not getattr(config, "conv_kernel_size", 0)
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
        and window is None
        and set(layers) == {"full_attention"}
        and not writes_in_forward(model)
    )


def _attend(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens size"],
    key: Float[Tensor, "1 kv_heads tokens size"],
    value: Float[Tensor, "1 kv_heads tokens size"],
    attention_mask: None,
    *,
    runs: Sequence[Run | Family],
    scaling: float | None = None,
    **_: object,
) -> tuple[Float[Tensor, "1 tokens heads size"], None]:
    """Attention within each sequence, by the signature of transformers' registry; no dropout."""
    is_causal = bool(getattr(module, "is_causal", False))
    sizes = [run.number * run.length if isinstance(run, Run) else run.num_tokens for run in runs]
    split = (each[0].split(sizes, dim=1) for each in (query, key, value))
    found = []
    for run, *states in zip(runs, *split, strict=True):
        if isinstance(run, Family):
            found.append(_attend_in_family(run, *states, scaling))
            continue
        by_sequence = (each.unflatten(1, run).transpose(0, 1) for each in states)
        attended = attend(*by_sequence, is_causal=is_causal, scale=scaling)
        found.append(attended.transpose(1, 2).flatten(0, 1))  # was [sequences, heads, length, size]
    return torch.cat(found).unsqueeze(0), None


def _attend_in_family(
    family: Family,
    query: Float[Tensor, "heads tokens size"],
    key: Float[Tensor, "kv_heads tokens size"],
    value: Float[Tensor, "kv_heads tokens size"],
    scale: float | None,
) -> Float[Tensor, "tokens heads size"]:
    """Causal: what is shared sees itself, and each rest sees that and itself."""
    (queries, *own_queries), (keys, *own_keys), (values, *own_values) = (
        states.split([family.shared, *family.own], dim=1) for states in (query, key, value)
    )
    found = [attend(queries[None], keys[None], values[None], is_causal=True, scale=scale)]
    for own_query, own_key, own_value in zip(own_queries, own_keys, own_values, strict=True):
        seen_keys, seen_values = torch.cat([keys, own_key], dim=1), torch.cat([values, own_value], dim=1)
        size = own_query.shape[1]
        sees = torch.ones(size, family.shared + size, dtype=torch.bool, device=query.device).tril(family.shared)
        found.append(attend(own_query[None], seen_keys[None], seen_values[None], sees=sees, scale=scale))
    return torch.cat(found, dim=2)[0].transpose(0, 1)


def _merged(parts: Sequence[Run | Family]) -> list[Run | Family]:
    """Single sequences of equal length as one run."""
    found: list[Run | Family] = []
    for part, equal in groupby(parts):
        number = len(list(equal))
        found += [Run(number, part.length)] if isinstance(part, Run) else [part] * number
    return found
