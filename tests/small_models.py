"""Reward models of architectures that `models.make` does not make, small and random."""

import torch
from transformers import AutoModelForSequenceClassification, DebertaV2Config

from scpo_ray import models


def deberta(text: str, *, seed: int) -> models.RewardModel:
    """Weights so large that relative positions matter; it knows the words of `text`, and reads 32 tokens."""
    tokenizer = models.train_tokenizer([text], vocab_size=100, architecture="bert")
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        initializer_range=0.3,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    with models.seeded(seed):
        model = AutoModelForSequenceClassification.from_config(config)
    return models.RewardModel(model.eval(), tokenizer)
