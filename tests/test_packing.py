"""Packed passes against each sequence through the model by itself, for every architecture that is packed."""

import copy
import zlib

import numpy as np
import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from scpo_ray.formatting import TokenSequence
from scpo_ray.packing import Packer, can_pack
from tests.one_by_one import rewards_one_by_one

SIZES = {"vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 3, "max_position_embeddings": 40, "pad_token_id": 1}
HEADS = {"num_attention_heads": 4, "intermediate_size": 96, "num_labels": 1}
GROUPED = {"num_key_value_heads": 2, "head_dim": 12, "sliding_window": None, "bos_token_id": None, "eos_token_id": 2}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
DISENTANGLED = RELATIVE | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
ARCHITECTURES = {
    "deberta-v2": DISENTANGLED | {"type_vocab_size": 0},
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
}
LENGTHS = [1, 7, 7, 7, 30, 2, 16, 16, 5]


def made(model_type, **changes):
    config = AutoConfig.for_model(model_type, **SIZES | HEADS | ARCHITECTURES.get(model_type, {}) | changes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # by name: two models differ where their settings do
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(is_norm + 0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def sequences_of(model):
    draw = np.random.default_rng(0)
    kinds = getattr(model.config, "type_vocab_size", 0)
    return [
        TokenSequence(
            draw.integers(3, 50, length).tolist(),
            draw.integers(0, kinds, length).tolist() if kinds else None,
            False,
        )
        for length in LENGTHS
    ]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_sequence_gets_the_reward_that_it_gets_alone(model_type):
    model = made(model_type)
    assert can_pack(model)
    sequences = sequences_of(model)
    expected = rewards_one_by_one(model, sequences)
    packer = Packer(model)
    with torch.inference_mode():
        found = packer.rewards(packer.pack(sequences)).tolist()
        backwards = packer.rewards(packer.pack(sequences[::-1])).tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    assert backwards[::-1] == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 0.1


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_texts_that_hold_the_padding_token_are_read_as_transformers_reads_them(model_type):
    """Decoders without a padding token pad with the one that ends every text."""
    model = made(model_type)
    pad = model.config.pad_token_id
    sequences = [
        TokenSequence([*ids, pad], [0] * (len(ids) + 1) if model_type == "bert" else None, False)
        for ids in ([5, 6, 7], [8, pad, 9, 10], [pad, pad], [11] * 12, [12, pad])
    ]
    expected = rewards_one_by_one(model, sequences)
    packer = Packer(model)
    with torch.inference_mode():
        found = packer.rewards(packer.pack(sequences)).tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 0.1


@pytest.mark.parametrize("model_type", ["bert", "roberta", "llama", "qwen3"])
def test_nothing_is_padded_and_the_last_mlp_sees_only_what_is_read(model_type):
    model = made(model_type)
    seen: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda _, inputs, __, name=name: seen.setdefault(name, []).append(inputs[0].shape[:-1].numel())
            )
    packer = Packer(model)
    packer.rewards(packer.pack(sequences_of(model)))
    is_last = {name: ".2.mlp." in name or ".2.intermediate." in name or ".2.output." in name for name in seen}
    in_layers = [name for name in seen if ".layer" in name]
    assert len(in_layers) == 3 * (7 if "llama" in model_type or "qwen" in model_type else 6)
    for name in in_layers:
        assert seen[name] == [len(LENGTHS) if is_last[name] else sum(LENGTHS)], name
    assert sum(is_last.values()) == (2 if "bert" in model_type else 3)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_are_those_of_padded_passes(model_type, lora):
    whole = made(model_type)
    same_gradients(whole, sequences_of(whole), lora=lora)


def same_gradients(whole, sequences, *, lora):
    """Of a preference loss, for every parameter that is trained."""
    packed = copy.deepcopy(whole)
    packer = Packer(packed)
    trained = [adapted(model) if lora else model for model in (whole, packed)]
    inputs = [padded(sequences, whole.config.pad_token_id), packer.inputs_of(sequences)]
    found = []
    for model, batch in zip(trained, inputs, strict=True):
        rewards = model(**batch).logits.squeeze(-1)
        torch.nn.functional.logsigmoid(rewards[:-1] - rewards[1:]).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    for name, gradient in found[0].items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[1][name], gradient, atol=2e-5 * scale, rtol=1e-4, msg=name)
    assert max(gradient.abs().max() for gradient in found[0].values()) > 0.1


def adapted(model):
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "SEQ_CLS"}
    torch.manual_seed(9)
    found = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return found.eval()


def padded(sequences, pad_token_id):
    length = max(len(sequence.input_ids) for sequence in sequences)
    ids, mask = (
        torch.full((len(sequences), length), pad_token_id),
        torch.zeros(len(sequences), length, dtype=torch.long),
    )
    kinds = torch.zeros_like(mask)
    for row, sequence in enumerate(sequences):
        size = len(sequence.input_ids)
        ids[row, :size], mask[row, :size] = torch.tensor(sequence.input_ids), 1
        if sequence.token_type_ids is not None:
            kinds[row, :size] = torch.tensor(sequence.token_type_ids)
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs if sequences[0].token_type_ids is None else inputs | {"token_type_ids": kinds}


DECODERS = [name for name in ARCHITECTURES if "bert" not in name]
FAMILIES = [(20, (3, 10, 1)), (0, (5,)), (17, (1, 1)), (0, (30,)), (0, (2,))]
"""(tokens that are shared, tokens that each has of its own), in a batch."""


def relatives(model):
    """Sequences of FAMILIES, of which one ends in what its model pads with."""
    draw = np.random.default_rng(1)
    found = []
    for shared, own in FAMILIES:
        start = draw.integers(3, 40, shared).tolist()
        found += [[*start, 40 + place, *draw.integers(3, 50, size - 1).tolist()] for place, size in enumerate(own)]
    found[2][-1] = model.config.pad_token_id  # read where the family's shared tokens end
    return [TokenSequence(ids, None, False) for ids in found]


@pytest.mark.parametrize("model_type", DECODERS)
def test_what_neighbours_begin_with_is_computed_once(model_type):
    model = made(model_type)
    sequences = relatives(model)
    expected = rewards_one_by_one(model, sequences)
    packer = Packer(model)
    batch = packer.pack(sequences, shares=True)
    assert batch.runs == [(20, (3, 10, 1)), (1, 5), (17, (1, 1)), (1, 30), (1, 2)]
    assert batch.tokens["input_ids"].shape == (1, 34 + 5 + 19 + 30 + 2)
    with torch.inference_mode():
        found = packer.rewards(batch).tolist()
        backwards = packer.rewards(packer.pack(sequences[::-1], shares=True)).tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    assert backwards[::-1] == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 0.1


@pytest.mark.parametrize("model_type", DECODERS)
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_through_what_is_shared_are_those_of_padded_passes(model_type, lora):
    whole = made(model_type)
    same_gradients(whole, relatives(whole), lora=lora)


def test_encoders_share_nothing():
    """What a token becomes depends on those after it, too."""
    packer = Packer(made("bert"))
    sequences = [TokenSequence([*range(3, 30), last], [0] * 28, False) for last in (31, 32)]
    assert packer.pack(sequences, shares=True).runs == [(2, 28)]


def test_sequences_of_equal_length_attend_together():
    packer = Packer(made("bert"))
    sequences = sequences_of(packer._model)
    batch = packer.pack(sequences)
    assert batch.runs == [(1, 1), (3, 7), (1, 30), (1, 2), (2, 16), (1, 5)]
    assert batch.read.tolist() == [0, 1, 8, 15, 22, 52, 54, 70, 86]
    assert Packer(made("llama")).pack(sequences).read.tolist() == [0, 7, 14, 21, 51, 53, 69, 85, 90]
    batch = packer.pack(sequences, by_length=True)
    assert batch.runs == [(1, 1), (1, 2), (1, 5), (3, 7), (2, 16), (1, 30)]
    assert batch.read.tolist() == [0, 8, 15, 22, 61, 1, 29, 45, 3]
    inputs = Packer(made("llama")).inputs_of(relatives(packer._model))
    assert inputs["runs"] == [(1, 2), (1, 5), (1, 30), (17, (1, 1)), (20, (3, 10, 1))]


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
        ("deberta-v2", {"conv_kernel_size": 3}),
        ("llama", {"is_causal": False}),
        ("bert", {"chunk_size_feed_forward": 4}),
        ("gemma2", GROUPED | {"sliding_window": 8}),
    ],
)
def test_what_attends_otherwise_is_padded(model_type, changes):
    assert not can_pack(made(model_type, **changes))
