"""Forward passes without padding: a batch's sequences end to end in one row, and nothing computed that no reward reads.

Every token goes through the linear layers once; attention runs within each sequence (those of equal length together).
A reward reads one token of each sequence, so the last layer's MLP, most of that layer, is computed for these tokens alone
(narrowing.py). Rewards equal those of padded batches up to rounding.

This is for CPUs and for architectures that take attention from transformers' registry and add nothing to it (no sliding
windows, no biases by distance); others, and GPUs, get padded batches.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from scpo_ray.formatting import TokenSequence
from scpo_ray.models import writes_in_forward
from scpo_ray.narrowing import narrow_decoder, narrow_encoder

_ATTENTION = "scpo_packed"
_ENCODERS = ("bert", "roberta", "xlm-roberta")
_DECODERS = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class PackedBatch:
    """Sequences end to end."""

    tokens: dict[str, Int[Tensor, "1 tokens"]]
    """input_ids, position_ids, and token_type_ids where the model has them."""
    lengths: list[int]
    """Tokens of each sequence."""
    read: Int[Tensor, " sequences"]
    """Where each sequence's reward is read."""

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Neighbours of equal length: (number of sequences, their length)."""
        return [(len(list(group)), length) for length, group in groupby(self.lengths)]

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
        AttentionInterface.register(_ATTENTION, _attend)
        model.config._attn_implementation = _ATTENTION
        if self._is_encoder:
            narrow_encoder(model, lambda: self._here.read)
            if getattr(model.base_model, "pooler", None) is not None:  # takes the first token of every row
                model.base_model.pooler.register_forward_pre_hook(lambda _, inputs: (inputs[0].transpose(0, 1),))
        else:
            narrow_decoder(model.base_model.layers[-1], lambda: self._here.read)
        model.forward = self._forward

    def pack(self, sequences: Sequence[TokenSequence]) -> PackedBatch:
        """One batch."""
        lengths = [len(sequence.input_ids) for sequence in sequences]
        ids = [torch.tensor(sequence.input_ids) for sequence in sequences]
        tokens = {
            "input_ids": torch.cat(ids).unsqueeze(0),
            "position_ids": torch.cat([self._positions(each) for each in ids]).unsqueeze(0),
        }
        if sequences[0].token_type_ids is not None:
            tokens["token_type_ids"] = torch.tensor(
                [[kind for sequence in sequences for kind in sequence.token_type_ids or ()]]
            )
        starts = torch.tensor([0, *accumulate(lengths)][:-1])
        return PackedBatch(tokens, lengths, starts + torch.tensor([self._read(each) for each in ids]))

    def inputs_of(self, sequences: Sequence[TokenSequence]) -> dict[str, Any]:
        """One batch, as the model's forward pass takes it."""
        return self.pack(sequences).inputs

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
        runs: Sequence[tuple[int, int]],
        read: Int[Tensor, " sequences"],
        token_type_ids: Int[Tensor, "1 tokens"] | None = None,
        **_: object,
    ) -> SequenceClassifierOutput:
        """In place of the model's own; adapters around it pass on a few settings that say nothing here."""
        kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        self._here.read = read
        try:
            found = self._model.base_model(
                input_ids=input_ids, position_ids=position_ids, **kinds, use_cache=False, runs=runs
            )
        finally:
            self._here.read = None
        states = found.last_hidden_state[0]
        if not self._is_encoder:
            rewards = self._model.score(states[read])
        elif self._model.config.model_type == "bert":
            rewards = self._model.classifier(found.pooler_output)
        else:
            rewards = self._model.classifier(states.unsqueeze(1))
        return SequenceClassifierOutput(logits=rewards.reshape(-1, 1))


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
    runs: Sequence[tuple[int, int]],
    scaling: float | None = None,
    **_: object,
) -> tuple[Float[Tensor, "1 tokens heads size"], None]:
    """Attention within each sequence, by the signature of transformers' registry; no dropout."""
    is_causal = bool(getattr(module, "is_causal", False))
    sizes = [number * length for number, length in runs]
    split = (each[0].split(sizes, dim=1) for each in (query, key, value))
    found = []
    for (number, length), *states in zip(runs, *split, strict=True):
        by_sequence = (each.unflatten(1, (number, length)).transpose(0, 1) for each in states)
        attended = functional.scaled_dot_product_attention(
            *by_sequence, scale=scaling, is_causal=is_causal, enable_gqa=key.shape[1] != query.shape[1]
        )  # [sequences, heads, length, size]
        found.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).unsqueeze(0), None
