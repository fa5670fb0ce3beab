"""Sequences through a policy and a critic: log-probabilities and values of response tokens. Needs no engine."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from scpo_ray.core.batching import micro_batches, round_up, token_budget_batches
from scpo_ray.ppo.records import Sequences


@dataclass(frozen=True)
class MicroBatch:
    """Sequences padded on the right, and where their responses stand."""

    rows: list[int]
    """Of the batch that they were taken from."""
    input_ids: Int[Tensor, "rows length"]
    attention_mask: Int[Tensor, "rows length"]
    positions: Int[Tensor, "rows tokens"]
    """Position before each response token: where the token is predicted and the state is valued. 0 outside the mask."""
    targets: Int[Tensor, "rows tokens"]
    mask: Bool[Tensor, "rows tokens"]

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on another device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class RankBatch(MicroBatch):
    """A rank's micro-batch in a round of all ranks."""

    is_placeholder: bool
    """The rank has nothing to add, and joins the collectives alone."""
    is_last: bool


def plan(lengths: Sequence[int], *, tokens_per_micro_batch: int, num_ranks: int) -> list[list[list[int]]]:
    """Rounds of one micro-batch per rank, of similar lengths, each within the token budget; parts may be empty.

    Every rank takes part in every round, as collectives under ZeRO ask.
    """
    rounds = []
    for batch in token_budget_batches(lengths, tokens_per_batch=tokens_per_micro_batch * num_ranks):
        parts = micro_batches([lengths[index] for index in batch], num_parts=num_ranks)
        rounds.append([[batch[index] for index in part] for part in parts])
    return rounds


def collate(sequences: Sequences, rows: Sequence[int], *, pad_token_id: int, multiple: int = 8) -> MicroBatch:
    """Some of the sequences as tensors.

    Raises:
        ValueError: a prompt or a response has no token.
    """
    prompts, responses = [sequences.prompts[row] for row in rows], [sequences.responses[row] for row in rows]
    if not all(prompts) or not all(responses):
        raise ValueError("a prompt or a response has no token")
    length = round_up(max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True)), multiple)
    num_tokens = max(len(response) for response in responses)
    input_ids = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
    positions = torch.zeros((len(rows), num_tokens), dtype=torch.long)
    targets = torch.zeros((len(rows), num_tokens), dtype=torch.long)
    mask = torch.zeros((len(rows), num_tokens), dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        whole = torch.tensor([*prompt, *response])
        input_ids[row, : len(whole)] = whole
        attention_mask[row, : len(whole)] = 1
        positions[row, : len(response)] = torch.arange(len(prompt) - 1, len(whole) - 1)
        targets[row, : len(response)] = whole[len(prompt) :]
        mask[row, : len(response)] = True
    return MicroBatch(list(rows), input_ids, attention_mask, positions, targets, mask)


def response_logits(
    forward: Callable[..., object], batch: MicroBatch, *, temperature: float
) -> Float[Tensor, "rows tokens vocabulary"]:
    """Tempered logits where response tokens were chosen; the output layer sees no position before the first response."""
    first = int(batch.positions[:, 0].min())
    last = int(batch.positions.max())
    kept = torch.arange(first, last + 1, device=batch.input_ids.device)
    logits = forward(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=kept, use_cache=False
    ).logits.float()
    index = (batch.positions - first).clamp(min=0).unsqueeze(-1).expand(-1, -1, logits.shape[-1])
    return logits.gather(1, index) / temperature


def log_probs_of(logits: Float[Tensor, "rows tokens vocabulary"], batch: MicroBatch) -> Float[Tensor, "rows tokens"]:
    """Log-probabilities of the response tokens, nats; zero outside the mask."""
    chosen = logits.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    return torch.where(batch.mask, chosen - logits.logsumexp(dim=-1), 0.0)


class Critic(nn.Module):
    """A policy's backbone with a value head that starts at zero: no state is better than another before anything is known."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(policy.base_model)
        hidden = policy.get_output_embeddings().weight.shape[-1]
        self.head = nn.Linear(hidden, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, input_ids: Int[Tensor, "rows length"], attention_mask: Int[Tensor, "rows length"]
    ) -> Float[Tensor, "rows length"]:
        """Values of all states, reward units; the head computes in float32."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()).squeeze(-1)


def values_of(forward: Callable[..., Tensor], batch: MicroBatch) -> Float[Tensor, "rows tokens"]:
    """Values before each response token was chosen; zero outside the mask."""
    values = forward(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    return torch.where(batch.mask, values.gather(1, batch.positions), 0.0)
