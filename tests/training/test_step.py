"""A micro-batch's share of its global batch: parts add up to the whole, and to the formula."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scpo_ray import models
from scpo_ray.config import FormatConfig, ModelConfig, OptimizationConfig
from scpo_ray.formatting import Formatter
from scpo_ray.training.batches import Preference, PreferenceSet
from scpo_ray.training.step import collate_items, normalizers, parameter_groups, part_loss, placeholder_loss
from tests import reference

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]
TOKENIZER = models.train_tokenizer(WORDS, vocab_size=64, architecture="llama")
FORMATTER = Formatter(TOKENIZER, FormatConfig(max_tokens=32))


class BagOfWords(nn.Module):
    """A reward model small enough to work out: the sum of a value per token."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(len(TOKENIZER), generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=(self.values[input_ids] * attention_mask).sum(-1, keepdim=True))


def _data(pairs, batching="interactions"):
    """Pairs as (interaction, chosen, rejected, weight, gap) over eight responses of one to eight words."""
    sequences = FORMATTER.format(
        [[{"role": "user", "content": "a"}]] * 8, [" ".join(WORDS[: length + 1]) for length in range(8)]
    )
    preferences = [
        Preference(
            interaction_id=f"i{interaction}",
            prompt_id="p",
            chosen=chosen,
            rejected=rejected,
            weight=weight,
            score_gap=gap,
        )
        for interaction, chosen, rejected, weight, gap in pairs
    ]
    return PreferenceSet(sequences, preferences, batching=batching)


def _by_hand(model, data, config):
    rewards = [model.values[torch.tensor(sequence.input_ids)].sum().item() for sequence in data.sequences]
    pairs = [pair for item in data.items for pair in item.pairs]
    chosen, rejected = [rewards[pair.chosen] for pair in pairs], [rewards[pair.rejected] for pair in pairs]
    weights = [pair.weight for pair in pairs]
    normalizer = len(pairs) if config.normalization == "pairs" or not sum(weights) else sum(weights)
    margins = [config.margin_per_score * pair.score_gap for pair in pairs]
    loss = reference.bradley_terry(chosen, rejected, weights, margins, normalizer)
    return loss + config.centering_coefficient * reference.centering(chosen, rejected)


def _value_and_gradient(model, parts, data, config, batch):
    model.zero_grad()
    normalizer, num_pairs = normalizers(batch, config)
    total = 0.0
    for part in parts:
        if part:
            micro = collate_items(part, data, FORMATTER.pad, config)
            loss = part_loss(model, micro, config, normalizer=normalizer, num_pairs=num_pairs).loss
            loss.backward()
            total += loss.item()
    return total, model.values.grad.clone()


def _different(pair):
    return pair[1] != pair[2]


PAIRS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 7),
        st.integers(0, 7),
        st.floats(0, 1, width=32, allow_subnormal=False),  # weights below 1e-38 have fewer digits than a float
        st.floats(-20, 20, width=32),
    ).filter(_different),
    min_size=1,
    max_size=10,
)


@settings(max_examples=50, deadline=None)
@given(
    PAIRS,
    st.sampled_from(["pairs", "weights"]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.05]),
    st.integers(1, 4),
    st.sampled_from(["interactions", "pairs"]),
)
def test_parts_add_up_to_the_formula(pairs, normalization, centering, margin, num_parts, batching):
    config = OptimizationConfig(
        normalization=normalization, centering_coefficient=centering, margin_per_score=margin, batching=batching
    )
    model, data = BagOfWords(), _data(pairs, batching)
    batch = data.items
    whole, gradient = _value_and_gradient(model, [batch], data, config, batch)
    assert whole == pytest.approx(_by_hand(model, data, config), rel=2e-5, abs=2e-5)
    parts = data.split(batch, num_parts=num_parts)
    total, summed = _value_and_gradient(model, parts, data, config, batch)
    assert total == pytest.approx(whole, rel=2e-5, abs=2e-5)
    torch.testing.assert_close(summed, gradient, rtol=2e-4, atol=2e-5)


def test_normalizers_by_hand():
    batch = _data([(0, 0, 1, 0.5, 0.0), (1, 2, 3, 0.25, 0.0), (1, 3, 4, 0.0, 0.0)]).items
    assert normalizers(batch, OptimizationConfig(normalization="pairs")) == (3.0, 3.0)
    assert normalizers(batch, OptimizationConfig(normalization="weights")) == (0.75, 3.0)
    weightless = _data([(0, 0, 1, 0.0, 0.0), (1, 2, 3, 0.0, 0.0)]).items
    assert normalizers(weightless, OptimizationConfig(normalization="weights")) == (2.0, 2.0)


def test_a_batch_without_weight_has_no_gradient():
    config = OptimizationConfig(normalization="weights")
    data = _data([(0, 0, 1, 0.0, 0.0)])
    value, gradient = _value_and_gradient(BagOfWords(), [data.items], data, config, data.items)
    assert value == 0.0
    assert not gradient.any()


def test_placeholder_loss_touches_every_parameter_with_zero():
    made = models.make(ModelConfig(hidden_size=32, num_layers=1), texts=WORDS, max_tokens=32, seed=0)
    formatter = Formatter(made.tokenizer, FormatConfig(max_tokens=32))
    data = _data([(0, 7, 6, 1.0, 0.0), (1, 0, 1, 1.0, 0.0)])
    seen = []
    made.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    loss = placeholder_loss(made.model, data, formatter.pad, OptimizationConfig())
    loss.backward()
    assert loss.item() == 0.0
    gradients = [parameter.grad for parameter in made.model.parameters()]
    assert len(gradients) > 10
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert seen[0]["input_ids"].shape[1] == len(data.sequences[1].input_ids)  # the shortest item, not the first


def test_matrices_decay_and_vectors_do_not():
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    model[3].weight.requires_grad_(False)
    decayed, plain = parameter_groups(model, weight_decay=0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(3, 4), (4, 4)]
    assert [tuple(parameter.shape) for parameter in plain["params"]] == [(4,), (4,), (4,), (1,)]


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_steps_on_a_real_model_lower_the_loss(architecture):
    made = models.make(
        ModelConfig(architecture=architecture, hidden_size=32, num_layers=1), texts=WORDS, max_tokens=32, seed=0
    )
    models.prepare_for_training(made.model, dropout=False, gradient_checkpointing=False)
    formatter = Formatter(made.tokenizer, FormatConfig(max_tokens=32))
    sequences = formatter.format([[{"role": "user", "content": "a"}]] * 4, ["a b", "c", "d e f", "g"])
    pairs = [
        Preference(interaction_id="i", prompt_id="p", chosen=chosen, rejected=rejected, weight=1.0, score_gap=0.0)
        for chosen, rejected in ((0, 1), (2, 3))
    ]
    data, config = PreferenceSet(sequences, pairs, batching="interactions"), OptimizationConfig()
    optimizer = torch.optim.AdamW(parameter_groups(made.model, weight_decay=0.0), lr=1e-3)
    losses = []
    for _ in range(30):
        micro = collate_items(data.items, data, formatter.pad, config)
        loss = part_loss(made.model, micro, config, normalizer=2.0, num_pairs=2.0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)
    assert losses[1] < losses[0]
    assert losses[-1] < 0.3 * losses[0]
