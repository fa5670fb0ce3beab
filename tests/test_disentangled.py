"""DeBERTa's attention in packed rows, beside transformers' own on each sequence by itself."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from scpo_ray import models
from scpo_ray.core.model_size import activation_bytes
from scpo_ray.disentangled import shifted
from scpo_ray.formatting import TokenSequence
from scpo_ray.packing import Packer, can_pack
from tests.one_by_one import rewards_one_by_one
from tests.test_packing import DISENTANGLED, made, same_gradients, sequences_of

VARIANTS = {
    "as in v3": {},
    "maps of their own for positions": {"share_att_key": False},
    "content to position": {"pos_att_type": ["c2p"]},
    "position to content": {"pos_att_type": ["p2c"], "share_att_key": False},
    "positions in content alone": {"relative_attention": False, "position_biased_input": True},
    "content alone": {"pos_att_type": [], "position_biased_input": True, "type_vocab_size": 2},
    "a bucket for every distance": {"position_buckets": -1},
    "fewer distances than tokens": {"position_buckets": -1, "max_relative_positions": 5},
    "fewer buckets' reach than tokens": {"max_relative_positions": 12},
    "buckets without a norm": {"norm_rel_ebd": "none"},
    "buckets that turn back": {"max_relative_positions": 4},
    "one layer": {"num_hidden_layers": 1},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_kind_gives_the_rewards_and_gradients_of_transformers(changes):
    """In double precision, whose rounding hides no mistake; but transformers rounds the scale to single."""
    model = made("deberta-v2", **DISENTANGLED | {"type_vocab_size": 0} | changes).double()
    assert can_pack(model)
    sequences = sequences_of(model)
    expected = rewards_one_by_one(model, sequences)
    packed = copy.deepcopy(model)
    packer = Packer(packed)
    with torch.inference_mode():
        found = packer.rewards(packer.pack(sequences)).tolist()
    assert found == pytest.approx(expected, abs=2e-6)
    assert np.std(expected) > 0.1
    same_gradients(model, sequences, lora=False)


def test_the_variants_are_different_models():
    """Where a setting changes nothing, the test above says nothing of it."""
    rewards = []
    for changes in VARIANTS.values():
        model = made("deberta-v2", **DISENTANGLED | {"type_vocab_size": 0} | changes)
        rewards.append(tuple(rewards_one_by_one(model, sequences_of(model))))
    assert len(set(rewards)) == len(VARIANTS)


@pytest.fixture(scope="module")
def long_model():
    """Distances, buckets and sizes of heads as in DeBERTa-v3-base."""
    sizes = {"vocab_size": 100, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    far = {"max_position_embeddings": 512, "position_buckets": 256}
    model = made("deberta-v2", **DISENTANGLED | {"type_vocab_size": 0, "intermediate_size": 256} | sizes | far)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embeddings" not in name:
                parameter.mul_(0.4)  # wider maps
    return model


@pytest.mark.parametrize("lengths", [[512], [300, 20, 131], [130], [129, 128, 2], [600, 40]])
def test_distances_near_and_far_meet_the_buckets_of_transformers(long_model, lengths):
    """Up to 128 a distance has a bucket of its own; beyond 511 all have the last."""
    draw = np.random.default_rng(0)
    sequences = [TokenSequence(draw.integers(3, 100, length).tolist(), None, False) for length in lengths]
    expected = rewards_one_by_one(long_model, sequences)
    packer = Packer(copy.deepcopy(long_model))
    with torch.inference_mode():
        found = packer.rewards(packer.pack(sequences)).tolist()
    assert found == pytest.approx(expected, abs=2e-5)


def test_short_texts_meet_only_the_distances_that_they_have(long_model):
    """transformers maps all 512 buckets in every layer."""
    model = copy.deepcopy(long_model)
    rows = []
    model.base_model.encoder.layer[0].attention.self.key_proj.register_forward_hook(
        lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel())
    )
    packer = Packer(model)
    packer.rewards(packer.pack([TokenSequence([5] * length, None, False) for length in (30, 9)]))
    assert rows == [39, 59]  # tokens, then distances from -29 to 29


def test_plans_know_that_scores_are_written(long_model, tmp_path):
    """What autograd keeps of two texts of 400 tokens, within a third; scores are most of it."""
    long_model.save_pretrained(tmp_path)
    shape = models.shape_of(tmp_path)
    model = copy.deepcopy(long_model)
    batch = Packer(model).inputs_of([TokenSequence([5] * 400, None, False)] * 2)
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(**batch)
    settings = {"num_tokens": 800, "length": 400, "bytes_per_value": 4, "checkpointing": False, "num_scores": 0}
    expected = activation_bytes(shape, **settings)
    assert sum(kept.values()) == pytest.approx(expected, rel=0.33)
    assert activation_bytes(replace(shape, writes_scores=False), **settings) < expected / 2
    del output


def test_bfloat16_stays_as_close_as_in_transformers(long_model):
    """In the root of the mean square over texts; the head is float32's, as in scoring."""
    draw = np.random.default_rng(1)
    sequences = [
        TokenSequence(draw.integers(3, 100, length).tolist(), None, False) for length in draw.integers(5, 120, 300)
    ]
    model = copy.deepcopy(long_model)
    exact = np.array(rewards_one_by_one(model, sequences))
    models.keep_head_float32(model)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = np.array(rewards_one_by_one(model, sequences))
        packer = Packer(model)
        with torch.inference_mode():
            ours = packer.rewards(packer.pack(sequences)).numpy()
    their_error, our_error = (np.sqrt(np.mean((found - exact) ** 2)) for found in (theirs, ours))
    assert 1e-4 < their_error < 0.1 * exact.std()
    assert our_error < 1.25 * their_error


def test_a_shift_puts_distances_in_their_places():
    """Three rows of five distances, each a number of two digits: its row, its column."""
    by_distance = torch.tensor([[0.0, 1, 2, 3, 4], [10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])
    assert shifted(by_distance).tolist() == [[2, 3, 4], [11, 12, 13], [20, 21, 22]]
    assert shifted(torch.tensor([[7.0]])).tolist() == [[7]]
    batch = torch.stack([by_distance, by_distance + 100])
    assert shifted(batch)[1].tolist() == [[102, 103, 104], [111, 112, 113], [120, 121, 122]]
