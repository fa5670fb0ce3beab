"""Learners on real DeepSpeed: any number of ranks and any ZeRO stage walk the same way; checkpoints restore exactly."""

import pytest
import torch
from torch.testing import assert_close

from scpo_ray import policies
from scpo_ray.config import LoraConfig, PpoConfig
from scpo_ray.core.kl import kl_estimate
from scpo_ray.errors import TrainingError
from scpo_ray.ppo.forward import collate, log_probs_of, response_logits
from scpo_ray.ppo.learner import LearnerTask
from scpo_ray.ppo.learners import LearnerDied, Learners
from scpo_ray.ppo.records import Experience, Sequences

SEQUENCES = Sequences(
    prompts=[[7, 8, 9], [6], [7, 8, 9, 10, 11, 12, 6], [8, 8], [10, 6], [11]],
    responses=[[10, 5], [9, 9, 8, 12, 5], [11, 7, 7], [12, 6, 5], [13, 8, 8, 8], [5]],
)
STEPS = 4
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 2e-5, 2e-4
"""As for reward models (tests/training/test_ranks.py): float32 sums in another order, and AdamW on tiny gradients."""


def config(**settings: object) -> PpoConfig:
    return PpoConfig(
        **{
            "learning_rate": 1e-3,
            "critic_learning_rate": 1e-3,
            "warmup_steps": 0,
            "num_minibatches": 2,
            "prompts_per_step": 6,
            "entropy_coefficient": 0.01,
            "threads_per_learner": 1,
            **settings,
        }
    )


def options(rank: int) -> dict:
    return {"num_cpus": 0.1}


def task(folder, ppo: PpoConfig, **changes: object) -> LearnerTask:
    known = {"temperature": 0.8, "reference": str(folder), "has_critic": True}
    return LearnerTask("test", str(folder), ppo, 0, **known | changes)


def experience(learners: Learners) -> Experience:
    """Advantages from fixed rewards: +1 for a 5 at the end, -1 else; importance and returns that are not trivial."""
    found = learners.evaluate(SEQUENCES)
    lengths = torch.tensor([len(response) for response in SEQUENCES.responses])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    ends = torch.tensor([1.0 if response[-1] == 5 else -1.0 for response in SEQUENCES.responses])
    advantages = torch.where(mask, ends.unsqueeze(1), 0.0)
    return Experience(
        SEQUENCES,
        mask,
        found["log_probs"],
        advantages,
        mask.float() * 0.9,
        found["values"],
        found["values"] + advantages,
    )


def walk(learners: Learners, folder, ppo: PpoConfig, *, first: int = 0, last: int = STEPS):
    """(statistics of each step, the policy's log-probabilities afterwards)"""
    rows = [learners.update(experience(learners), step) for step in range(first, last)]
    return rows, learners.evaluate(SEQUENCES)


@pytest.fixture(scope="module")
def one(ray_cluster):
    group = Learners(config(), options, threads=1)
    group.start()
    yield group
    group.stop()


@pytest.fixture(scope="module")
def two(ray_cluster):
    group = Learners(config(num_learners=2), options, threads=1)
    group.start()
    yield group
    group.stop()


@pytest.fixture(scope="module")
def alone(one, tiny_policy):
    one.begin(task(tiny_policy, config()))
    return walk(one, tiny_policy, config())


def test_what_learners_compute_is_the_policy(one, tiny_policy):
    one.begin(task(tiny_policy, config()))
    found = one.evaluate(SEQUENCES)
    batch = collate(SEQUENCES, range(6), pad_token_id=0)
    with torch.no_grad():
        expected = log_probs_of(response_logits(policies.load(tiny_policy).model, batch, temperature=0.8), batch)
    assert_close(found["log_probs"], expected, atol=2e-6, rtol=0)
    assert torch.equal(found["log_probs"], found["reference_log_probs"])
    assert found["values"].abs().max() == 0


def test_praised_tokens_become_likelier_and_the_reference_stays(alone, tiny_policy):
    _, after = alone
    before = after["reference_log_probs"]
    moved = (after["log_probs"] - before).sum(dim=1)
    ends = torch.tensor([response[-1] == 5 for response in SEQUENCES.responses])
    assert (moved[ends] > 0.2).all() and (moved[~ends] < -0.2).all()
    batch = collate(SEQUENCES, range(6), pad_token_id=0)
    with torch.no_grad():
        expected = log_probs_of(response_logits(policies.load(tiny_policy).model, batch, temperature=0.8), batch)
    assert_close(before, expected, atol=2e-6, rtol=0)
    assert kl_estimate(log_probs=after["log_probs"], reference_log_probs=before, estimator="k3").sum() > 0.1


@pytest.mark.parametrize("settings", [{"zero_stage": 0}, {"zero_stage": 2}, {"zero_stage": 3}], ids=str)
def test_two_learners_walk_where_one_does(alone, two, tiny_policy, settings):
    ppo = config(num_learners=2, **settings)
    two.begin(task(tiny_policy, ppo))
    rows, after = walk(two, tiny_policy, ppo)
    _same(alone, (rows, after))


def test_micro_batches_change_nothing(alone, one, tiny_policy):
    ppo = config(tokens_per_micro_batch=64).model_copy(update={"tokens_per_micro_batch": 16})
    one.begin(task(tiny_policy, ppo))
    _same(alone, walk(one, tiny_policy, ppo))


def _same(expected, found) -> None:
    for row, other in zip(expected[0], found[0], strict=True):
        for name in ("policy_loss", "critic_loss", "clipped_share", "entropy", "step_divergence"):
            assert other[name] == pytest.approx(row[name], abs=LOSS_TOLERANCE), name
        for name in ("policy_grad_norm", "critic_grad_norm"):
            assert other[name] == pytest.approx(row[name], rel=1e-3), name
    for name in ("log_probs", "values"):
        assert_close(found[1][name], expected[1][name], atol=5 * WEIGHT_TOLERANCE, rtol=0)


def test_adapters_off_are_the_reference(two, tiny_policy):
    """LoRA under ZeRO-3 on two ranks: no second copy of the policy, and what is published has the adapters in it."""
    ppo = config(num_learners=2, zero_stage=3, lora=LoraConfig(enabled=True, rank=4))
    two.begin(task(tiny_policy, ppo))
    _, after = walk(two, tiny_policy, ppo)
    batch = collate(SEQUENCES, range(6), pad_token_id=0)
    start = policies.load(tiny_policy).model
    with torch.no_grad():
        expected = log_probs_of(response_logits(start, batch, temperature=0.8), batch)
    assert_close(after["reference_log_probs"], expected, atol=2e-6, rtol=0)
    assert (after["log_probs"] - expected).abs().max() > 0.01

    import ray

    update = two.publish(1, [[6, 7, 8]], "float32")
    weights = dict(item for chunk in update.chunks for item in ray.get(chunk))
    start.load_state_dict({name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}, strict=False)
    with torch.no_grad():
        published = log_probs_of(response_logits(start, batch, temperature=0.8), batch)
    assert_close(published, after["log_probs"], atol=1e-5, rtol=0)


def test_a_checkpoint_restores_exactly(one, tiny_policy, tmp_path):
    ppo = config()
    one.begin(task(tiny_policy, ppo))
    walk(one, tiny_policy, ppo, last=2)
    one.save(str(tmp_path / "step_2"), {"step": 2})
    expected = walk(one, tiny_policy, ppo, first=2)
    one.begin(task(tiny_policy, ppo))
    assert one.restore(str(tmp_path / "step_2")) == {"step": 2}
    rows, after = walk(one, tiny_policy, ppo, first=2)
    assert rows == expected[0]
    assert torch.equal(after["log_probs"], expected[1]["log_probs"])
    assert torch.equal(after["values"], expected[1]["values"])


def test_a_checkpoint_of_another_zero_stage_is_refused(one, tiny_policy, tmp_path):
    one.begin(task(tiny_policy, config()))
    one.save(str(tmp_path / "step_0"), {"step": 0})
    one.begin(task(tiny_policy, config(zero_stage=2)))
    with pytest.raises(
        TrainingError, match="step_0: written under ZeRO stage 0, zero_stage is 2; set it to 0, or delete the folder"
    ):
        one.restore(str(tmp_path / "step_0"))


def test_a_learning_rate_of_zero_moves_nothing(one, tiny_policy):
    ppo = config(learning_rate=0.0)
    one.begin(task(tiny_policy, ppo))
    _, after = walk(one, tiny_policy, ppo, last=2)
    assert torch.equal(after["log_probs"], after["reference_log_probs"])


def test_imitation_follows_the_gradient_of_the_likelihood(one, tiny_policy):
    import ray

    one.begin(LearnerTask("sft", str(tiny_policy), config(), 0))
    sequences = ray.put(SEQUENCES)
    losses = [one.imitate(sequences, range(6), learning_rate=3e-3) for _ in range(30)]
    batch = collate(SEQUENCES, range(6), pad_token_id=0)
    with torch.no_grad():
        first = -log_probs_of(response_logits(policies.load(tiny_policy).model, batch, temperature=1.0), batch)
    assert losses[0] == pytest.approx(float(first.sum() / batch.mask.sum()), abs=1e-5)
    assert losses[-1] < 0.3 * losses[0]


def test_a_dead_rank_is_noticed_and_the_group_starts_anew(two, tiny_policy):
    import os
    import signal
    import threading

    import ray

    ppo = config(num_learners=2, zero_stage=2, update_epochs=400)
    two.begin(task(tiny_policy, ppo))
    batch = experience(two)
    victim = ray.get(two.actors[1].pid.remote())
    threading.Timer(1.5, os.kill, (victim, signal.SIGKILL)).start()
    with pytest.raises(LearnerDied):  # while both are in collectives: the other hears of a broken connection
        two.update(batch, 0)
    two.start()
    two.begin(task(tiny_policy, ppo))
    assert two.evaluate(SEQUENCES)["log_probs"].shape[0] == 6
