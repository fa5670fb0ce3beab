"""Policies on disk: what can be loaded, what is refused, and that saving other weights keeps everything else."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from scpo_ray import models, policies
from scpo_ray.config import ModelConfig
from scpo_ray.errors import ModelError

WORDS = ["ask your elders and then fix the old boat with care because it is yours , or sell it and be done with it ."]


@pytest.fixture
def folder(tmp_path):
    made = policies.make(ModelConfig(), texts=WORDS, max_tokens=64, seed=3)
    policies.save(made, tmp_path / "policy")
    return tmp_path / "policy"


def test_a_policy_comes_back_as_it_was(folder):
    made = policies.make(ModelConfig(), texts=WORDS, max_tokens=64, seed=3)
    loaded = policies.load(folder)
    for name, parameter in made.model.named_parameters():
        assert torch.equal(parameter, loaded.model.get_parameter(name))
    text = "fix the old boat"
    assert loaded.tokenizer.encode(text) == made.tokenizer.encode(text)
    other = policies.make(ModelConfig(), texts=WORDS, max_tokens=64, seed=4)
    assert not torch.equal(other.model.get_input_embeddings().weight, made.model.get_input_embeddings().weight)


def test_other_weights_in_the_same_form(folder, tmp_path):
    weights = {name: parameter * 2 for name, parameter in policies.load(folder).model.named_parameters()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]  # tied: published, not saved twice
    (tmp_path / "new").mkdir()
    policies.save_weights(folder, weights, tmp_path / "new")
    loaded = policies.load(tmp_path / "new").model
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, weights[name])
    assert "lm_head.weight" not in load_file(tmp_path / "new/model.safetensors")


def test_where_it_stops(folder):
    tokenizer = models.load_tokenizer(folder)
    assert policies.stop_token_ids(folder, tokenizer) == [tokenizer.eos_token_id]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert policies.stop_token_ids(folder, tokenizer) == sorted({tokenizer.eos_token_id, 7, 9})


def test_a_policy_that_never_stops(folder):
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer = models.load_tokenizer(folder)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token, so that no response would end"):
        policies.stop_token_ids(folder, tokenizer)


def test_missing_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if "mlp" not in name}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks 6 of the policy's weights \(model.layers.0.mlp"):
        policies.load(folder)


def test_too_few_positions(folder):
    policies.check(folder, num_tokens=64)
    with pytest.raises(ModelError, match=r"reads at most 64 tokens, format.max_tokens is 65; lower format.max_tokens"):
        policies.check(folder, num_tokens=65)


def test_a_reward_model(tiny_reward_model):
    with pytest.raises(ModelError, match="LlamaForSequenceClassification is no causal language model"):
        policies.check(tiny_reward_model)


def test_no_model(tmp_path):
    with pytest.raises(ModelError, match="not a transformers model"):
        policies.check(tmp_path)
