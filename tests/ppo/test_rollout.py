"""The real vLLM in its actor: what it writes is what the learner's weights say, and what differs is caught."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from scpo_ray import policies
from scpo_ray.config import ModelConfig
from scpo_ray.errors import ModelError, SynchronizationError
from scpo_ray.ppo import sync
from scpo_ray.ppo.forward import collate, log_probs_of, response_logits
from scpo_ray.ppo.records import Canaries, Sequences, WeightUpdate
from scpo_ray.ppo.rollout import RolloutEngine
from tests.ppo.conftest import TEMPERATURE, WORDS

PROMPTS = [[7, 8, 9], [6], [7, 8, 9, 10, 11, 12, 6], [8, 8]] * 8
SEEDS = list(range(100, 132))
CANARIES = ((6, 7, 8, 9, 10, 11, 12, 13, 14), (9, 8, 7, 6, 12, 13, 10, 11))
TOLERANCE = 1e-4
"""Nats; ppo.sync_tolerance in float32. Measured here: below 1e-5."""


@pytest.fixture
def model(tiny_policy):
    return policies.load(tiny_policy).model


def log_probs(model, sequences: Sequences, temperature: float):
    batch = collate(sequences, range(len(sequences.prompts)), pad_token_id=0)
    with torch.no_grad():
        return log_probs_of(response_logits(model, batch, temperature=temperature), batch)


def published(ray, model, *, version: int, damaged: str | None = None, checksum_of_sent: bool = True) -> WeightUpdate:
    """What a learner would publish; with one tensor 1% too large on the way, or already when its checksum is taken."""
    weights = dict(sync.named_weights(model, lambda parameters: contextlib.nullcontext(), dtype=torch.float32))
    sent = weights | ({damaged: weights[damaged] * 1.01} if damaged else {})
    checksum = sync.Checksum()
    for name, tensor in (weights if checksum_of_sent else sent).items():
        checksum.update(name, tensor)
    rows = log_probs(model, Sequences([row[:1] for row in CANARIES], [row[1:] for row in CANARIES]), 1.0)
    values = tuple(tuple(row[: len(canary) - 1].tolist()) for row, canary in zip(rows, CANARIES, strict=True))
    chunks = tuple(ray.put([item]) for item in sent.items())
    return WeightUpdate(version, chunks, checksum.hexdigest(), checksum.num_bytes, Canaries(CANARIES, values))


def moved(model, scale: float = 0.05):
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    return model


def test_an_engine_writes_nothing_before_it_has_weights(ray_cluster, engine):
    """First in this file: afterwards the engine has some."""
    with pytest.raises(SynchronizationError, match="has weights of version None, version 0 was to write"):
        ray_cluster.get(engine.generate.remote(PROMPTS[:1], SEEDS[:1], 0))


def test_log_probabilities_are_the_learners(ray_cluster, engine, model):
    for version in (1, 2):  # the second update replaces weights that have been prepacked
        update = published(ray_cluster, moved(model) if version == 2 else model, version=version)
        report = ray_cluster.get(engine.update.remote(update))
        assert sync.check(update, report, engine="engine", tolerance=TOLERANCE) < 1e-5
        samples = ray_cluster.get(engine.generate.remote(PROMPTS, SEEDS, version))
        assert {sample.version for sample in samples} == {version}
        expected = log_probs(model, Sequences(PROMPTS, [sample.token_ids for sample in samples]), TEMPERATURE)
        for row, sample in zip(expected, samples, strict=True):
            assert_close(list(sample.log_probs), row[: len(sample.log_probs)].tolist(), atol=1e-5, rtol=0)


def test_stops(ray_cluster, engine, model):
    ray_cluster.get(engine.update.remote(published(ray_cluster, model, version=3)))
    samples = ray_cluster.get(engine.generate.remote(PROMPTS, SEEDS, 3))
    ended = [sample for sample in samples if sample.is_finished]
    cut = [sample for sample in samples if not sample.is_finished]
    assert ended and cut
    assert all(sample.token_ids[-1] == 5 and 5 not in sample.token_ids[:-1] for sample in ended)
    assert all(len(sample.token_ids) == 12 and 5 not in sample.token_ids for sample in cut)


def test_samples_follow_the_tempered_distribution(ray_cluster, engine, model):
    """First tokens of 2,000 responses to one prompt against their probabilities."""
    ray_cluster.get(engine.update.remote(published(ray_cluster, model, version=4)))
    samples = ray_cluster.get(engine.generate.remote([[7, 8, 9]] * 2000, list(range(2000)), 4))
    counts = torch.bincount(torch.tensor([sample.token_ids[0] for sample in samples]), minlength=model.vocab_size)
    with torch.no_grad():
        expected = (model(torch.tensor([[7, 8, 9]])).logits[0, -1] / TEMPERATURE).softmax(-1)
    error = (counts / 2000 - expected).abs() / (expected * (1 - expected) / 2000).sqrt().clamp(min=1e-4)
    assert error.max() < 4.5


def test_a_seed_writes_the_same_whatever_it_is_batched_with(ray_cluster, engine, model):
    ray_cluster.get(engine.update.remote(published(ray_cluster, model, version=5)))
    together = ray_cluster.get(engine.generate.remote(PROMPTS, SEEDS, 5))
    alone = ray_cluster.get(engine.generate.remote(PROMPTS[3:5], SEEDS[3:5], 5))
    assert [sample.token_ids for sample in together[3:5]] == [sample.token_ids for sample in alone]
    others = ray_cluster.get(engine.generate.remote(PROMPTS, [seed + 1000 for seed in SEEDS], 5))
    assert [sample.token_ids for sample in together] != [sample.token_ids for sample in others]


def test_cached_prefixes_are_forgotten_with_the_weights(ray_cluster, engine, model):
    """A prompt of several cache blocks, written under old weights, must be read anew."""
    prompt = [[6 + index % 9 for index in range(48)]]
    ray_cluster.get(engine.update.remote(published(ray_cluster, model, version=6)))
    ray_cluster.get(engine.generate.remote(prompt, [1], 6))
    ray_cluster.get(engine.update.remote(published(ray_cluster, moved(model, 0.2), version=7)))
    (sample,) = ray_cluster.get(engine.generate.remote(prompt, [1], 7))
    expected = log_probs(model, Sequences(prompt, [sample.token_ids]), TEMPERATURE)[0]
    assert_close(list(sample.log_probs), expected[: len(sample.log_probs)].tolist(), atol=1e-5, rtol=0)


def names(tiny_policy) -> list[str]:
    return [name for name, _ in policies.load(tiny_policy).model.named_parameters()]


def test_a_tensor_damaged_on_the_way_is_caught_by_the_checksum(ray_cluster, engine, model, tiny_policy):
    for name in names(tiny_policy):
        update = published(ray_cluster, model, version=8, damaged=name)
        report = ray_cluster.get(engine.update.remote(update))
        with pytest.raises(SynchronizationError, match="they were damaged on the way"):
            sync.check(update, report, engine="engine", tolerance=TOLERANCE)


def test_a_tensor_damaged_before_the_checksum_is_caught_by_the_canaries(ray_cluster, engine, model, tiny_policy):
    """Each tensor in turn, 1% too large: the smallest effect is far above the tolerance."""
    for name in [*names(tiny_policy), "lm_head.weight"]:
        update = published(ray_cluster, model, version=9, damaged=name, checksum_of_sent=False)
        report = ray_cluster.get(engine.update.remote(update))
        with pytest.raises(SynchronizationError, match="a canary token's log-probability differs"):
            sync.check(update, report, engine="engine", tolerance=TOLERANCE)


def test_a_skipped_synchronisation_is_caught_by_the_next_rollout(ray_cluster, engine, model):
    ray_cluster.get(engine.update.remote(published(ray_cluster, model, version=10)))
    with pytest.raises(SynchronizationError, match="has weights of version 10, version 11 was to write"):
        ray_cluster.get(engine.generate.remote(PROMPTS[:1], SEEDS[:1], 11))


def test_what_vllm_cannot_run_is_said_once(ray_cluster, engine_spec, tmp_path):
    """Heads of 16 on a CPU: no death that would be repeated, one line."""
    folder = tmp_path / "narrow"
    made = policies.make(ModelConfig(hidden_size=32, num_heads=2), texts=WORDS, max_tokens=64, seed=3)
    policies.save(made, folder)
    actor = ray_cluster.remote(RolloutEngine).options(num_cpus=0.1).remote(replace(engine_spec, policy=str(folder)))
    with pytest.raises(ModelError, match=r"narrow: vLLM cannot run it here \(.*on CPUs heads must have 32 or more"):
        ray_cluster.get(actor.load.remote())
    ray_cluster.kill(actor)
