"""Training through narrowed last layers: the same rewards and gradients, from less arithmetic."""

import copy

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from scpo_ray import models
from scpo_ray.narrowing import narrow_encoder

SIZES = {"vocab_size": 50, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96, "num_labels": 1}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
ARCHITECTURES = {"bert": {}, "roberta": {}, "xlm-roberta": {}, "deberta-v2": RELATIVE | {"conv_kernel_size": 3}}
ROWS, LENGTH = 5, 12


def made(model_type, **changes):
    settings = SIZES | {"num_hidden_layers": 3, "max_position_embeddings": 40, "pad_token_id": 1}
    torch.manual_seed(3)
    config = AutoConfig.for_model(model_type, **settings | ARCHITECTURES.get(model_type, {}) | changes)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batch():
    torch.manual_seed(5)
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[1, 7:] = mask[3, 2:] = 0
    ids = torch.randint(3, 50, (ROWS, LENGTH))
    return {"input_ids": ids.where(mask.bool(), 1), "attention_mask": mask}


def rewards_and_gradients(model):
    rewards = model(**batch()).logits.squeeze(-1)
    torch.nn.functional.logsigmoid(rewards[:-1] - rewards[1:]).sum().backward()
    return rewards.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_rewards_and_gradients_are_those_of_the_whole_model(model_type, checkpointing):
    whole = made(model_type).eval()
    narrow = copy.deepcopy(whole)
    expected, gradients = rewards_and_gradients(whole)
    models.prepare_for_training(narrow, dropout=False, gradient_checkpointing=checkpointing)
    rows = []
    last = narrow.base_model.encoder.layer[-1]
    last.intermediate.dense.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:2]))
    found, own = rewards_and_gradients(narrow)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, atol=2e-5, rtol=1e-4, msg=name)
    assert set(rows) == {(ROWS, 1)}
    assert max(gradient.abs().max() for gradient in gradients.values()) > 0.1


def test_adapters_are_narrowed_with_their_model():
    whole = peft.get_peft_model(made("bert"), peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    narrow = copy.deepcopy(whole.eval())
    expected, gradients = rewards_and_gradients(whole)
    models.prepare_for_training(narrow, dropout=False, gradient_checkpointing=False)
    found, own = rewards_and_gradients(narrow)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, atol=2e-5, rtol=1e-4, msg=name)
    (layer,) = [m for name, m in narrow.named_modules() if name.endswith("encoder.layer.2.intermediate.dense")]
    rows = []
    layer.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:2]))
    rewards_and_gradients(narrow)
    assert rows == [(ROWS, 1)]


def test_a_single_layer_that_a_convolution_follows_is_left_whole():
    whole = made("deberta-v2", num_hidden_layers=1).eval()
    narrow = copy.deepcopy(whole)
    narrow_encoder(narrow)
    torch.testing.assert_close(narrow(**batch()).logits, whole(**batch()).logits)


def test_decoders_are_trained_whole():
    decoder = made("llama", num_key_value_heads=2)
    models.prepare_for_training(decoder, dropout=False, gradient_checkpointing=False)
    rows = []
    decoder.model.layers[-1].mlp.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:2]))
    decoder(**batch())
    assert rows == [(ROWS, LENGTH)]
