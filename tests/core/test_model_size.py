"""The cost model's arithmetic, by hand and against real models."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from scpo_ray.core.model_size import (
    TransformerShape,
    activation_bytes,
    backward_bytes,
    cache_bytes,
    decoding_seconds,
    forward_flops,
    gradient_traffic_bytes,
    logits_bytes,
    state_bytes,
    synchronization_bytes,
    training_flops,
)

LLAMA_8B = TransformerShape(32, 4096, 14336, 32, 8, 128, 128256)
TINY = TransformerShape(2, 8, 20, 2, 1, 4, 50)


def test_a_tiny_models_parameters_by_hand():
    # q 8x8, k and v 8x4, o 8x8, gate and up 8x20, down 20x8
    assert TINY.num_matrix_parameters == 2 * (64 + 32 + 32 + 64 + 160 + 160 + 160)
    assert TINY.num_parameters == 50 * 8 + 2 * 672 + 2 * 2 * 8 + 8
    assert TINY.num_adapter_parameters(3) == 2 * 3 * (16 + 12 + 12 + 16 + 28 + 28 + 28)


def test_llama_8b_has_its_known_size():
    assert LLAMA_8B.num_parameters + 128256 * 4096 == 8_030_261_248  # with its untied head, as published


def llama(shape: TransformerShape) -> LlamaForSequenceClassification:
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            num_labels=1,
            pad_token_id=0,
            attn_implementation="eager",
        )
    )


def bert(shape: TransformerShape) -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            max_position_embeddings=shape.num_positions,
            num_labels=1,
            attn_implementation="eager",
        )
    )


SHAPES = [
    (llama, TransformerShape(3, 64, 160, 4, 2, 16, 500)),
    (bert, TransformerShape(3, 64, 160, 4, 4, 16, 500, num_positions=64, gated_mlp=False, biases=True)),
]


@pytest.mark.parametrize(("make", "shape"), SHAPES)
def test_parameters_are_those_of_real_models(make, shape):
    real = sum(parameter.numel() for parameter in make(shape).base_model.parameters())
    extra = 2 * shape.hidden_size + shape.hidden_size * (shape.hidden_size + 1) if make is bert else 0  # types, pooler
    assert shape.num_parameters + extra == real


@pytest.mark.parametrize(("make", "shape"), SHAPES)
def test_flops_are_those_that_torch_counts(make, shape):
    model, tokens = make(shape), torch.ones(4, 48, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=tokens).logits.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    counts = {"num_tokens": 4 * 48, "mean_length": 48}
    assert forward_flops(shape, **counts) == pytest.approx(forward.get_total_flops(), rel=0.01)
    measured = forward.get_total_flops() + backward.get_total_flops()
    assert training_flops(shape, **counts) == pytest.approx(measured, rel=0.02)
    assert training_flops(shape, **counts, checkpointing=True) == pytest.approx(4 / 3 * measured, rel=0.02)


def test_flops_of_lora_are_those_that_torch_counts():
    from peft import LoraConfig, get_peft_model

    shape = SHAPES[0][1]
    adapted = get_peft_model(llama(shape), LoraConfig(task_type="SEQ_CLS", r=8, target_modules="all-linear"))
    embeddings = torch.randn(4, 48, shape.hidden_size)
    with FlopCounterMode(display=False) as counter:
        adapted(inputs_embeds=embeddings, attention_mask=torch.ones(4, 48)).logits.sum().backward()
    expected = training_flops(shape, num_tokens=4 * 48, mean_length=48, lora_rank=8)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.06)  # the first layer's inputs take no gradient


def test_activations_are_about_what_autograd_keeps():
    """Within a fifth; casts and rotary tables are not counted, nor tensors that two operations share."""
    shape = TransformerShape(4, 128, 344, 4, 2, 32, 500)
    model, tokens = llama(shape), torch.ones(4, 96, dtype=torch.long)
    model.set_attn_implementation("sdpa")
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=tokens)
    expected = activation_bytes(
        shape, num_tokens=4 * 96, length=96, bytes_per_value=4, checkpointing=False, num_scores=0
    )
    assert sum(kept.values()) == pytest.approx(expected, rel=0.2)
    assert output.logits.shape == (4, 1)


def test_activations_by_hand():
    settings = {"num_tokens": 10, "length": 5, "bytes_per_value": 2}
    layer = 4 * 8 + 4 * (2 * 2 + 2 * 1) + 4 * 20
    assert activation_bytes(TINY, **settings, checkpointing=False, num_scores=0) == 10 * 2 * 2 * layer
    assert activation_bytes(TINY, **settings, checkpointing=False, num_scores=1) == 10 * 2 * 2 * (layer + 2 * 5)
    written = replace(TINY, writes_scores=True)
    for number in (0, 1, 2):
        kept = activation_bytes(written, **settings, checkpointing=False, num_scores=number)
        assert kept == 10 * 2 * 2 * (layer + 2 * 2 * 5)
    assert activation_bytes(TINY, **settings, checkpointing=True, num_scores=0) == 10 * 2 * (2 * 8 + layer)
    assert backward_bytes(TINY, num_tokens=10, bytes_per_value=2) == 10 * 2 * (3 * 20 + 2 * 8)


@pytest.mark.parametrize(("stage", "expected"), [(0, 1600), (1, 1000), (2, 700), (3, 400)])
def test_zero_divides_moments_then_gradients_then_weights(stage, expected):
    assert state_bytes(100, num_trained=100, zero_stage=stage, num_devices=4) == expected
    assert state_bytes(100, num_trained=100, zero_stage=stage, num_devices=1) == 1600


def test_adapters_alone_have_gradients_and_moments():
    assert state_bytes(100, num_trained=10, zero_stage=0, num_devices=1) == 400 + 120
    assert state_bytes(100, num_trained=10, zero_stage=3, num_devices=2) == 260


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="expected a ZeRO stage of 0 to 3, got 4"):
        state_bytes(1, num_trained=1, zero_stage=4, num_devices=1)


def test_caches_and_traffic_by_hand():
    assert cache_bytes(LLAMA_8B, num_tokens=1, bytes_per_value=2) == 131_072  # 128 KiB a token, as known of Llama 3 8B
    assert gradient_traffic_bytes(100, num_trained=100, zero_stage=1, num_devices=4) == 600
    assert gradient_traffic_bytes(100, num_trained=100, zero_stage=3, num_devices=4) == 900
    assert gradient_traffic_bytes(100, num_trained=100, zero_stage=0, num_devices=1) == 0


def test_decoding_reads_weights_and_caches_every_round():
    # 120 tokens, 4 at a time: 30 rounds; each reads (2*672 + 50*8 + 40 + 8*50) * 2 B and 4 caches of 10 tokens
    weights = 2 * (TINY.num_parameters + 8 * 50)
    cache = 2 * 2 * 1 * 4 * 2 * 10
    found = decoding_seconds(
        TINY, num_tokens=120, num_concurrent=4, mean_length=10, bytes_per_value=2, bytes_per_second=1e6
    )
    assert found == pytest.approx(30 * (weights + 4 * cache) / 1e6)


def test_an_8b_model_writes_as_fast_as_an_h100_reads_its_weights():
    """One sequence alone: 3.35 TB/s over 16 GB are 200 tokens a second at best, as is known of it."""
    found = decoding_seconds(
        LLAMA_8B, num_tokens=1, num_concurrent=1, mean_length=1, bytes_per_value=2, bytes_per_second=3.35e12
    )
    assert 1 / found == pytest.approx(208, abs=1)


def test_weights_leave_once_for_each_engine_and_logits_have_a_gradient():
    assert synchronization_bytes(1000, num_engines=3, bytes_per_value=2) == 6000
    assert logits_bytes(TINY, num_tokens=7) == 2 * 7 * 50 * 4
