"""Log-probabilities and values of response tokens, against the slow way: one sequence at a time, nothing padded."""

import pytest
import torch
from torch.testing import assert_close

from scpo_ray import policies
from scpo_ray.config import ModelConfig
from scpo_ray.ppo.forward import Critic, collate, log_probs_of, plan, response_logits, values_of
from scpo_ray.ppo.records import Sequences

WORDS = ["ask your elders and then fix the old boat with care because it is yours , or sell it and be done with it ."]
SEQUENCES = Sequences(prompts=[[7, 8, 9], [6], [7, 8, 9, 10, 11, 12, 6]], responses=[[10, 5], [9, 9, 8, 12, 5], [11]])


@pytest.fixture(scope="module")
def model():
    made = policies.make(ModelConfig(hidden_size=64), texts=WORDS, max_tokens=64, seed=3).model
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3.0)  # far from uniform, so that a wrong position shows
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_each_sequence_alone(model, temperature):
    batch = collate(SEQUENCES, [2, 0, 1], pad_token_id=0)
    with torch.no_grad():
        found = log_probs_of(response_logits(model, batch, temperature=temperature), batch)
    assert batch.rows == [2, 0, 1]
    for place, row in enumerate(batch.rows):
        prompt, response = SEQUENCES.prompts[row], SEQUENCES.responses[row]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response]])).logits[0] / temperature
        expected = [
            float(logits[len(prompt) - 1 + index].log_softmax(-1)[token]) for index, token in enumerate(response)
        ]
        assert_close(found[place, : len(response)].tolist(), expected, atol=2e-6, rtol=0)
        assert found[place, len(response) :].abs().sum() == 0


def test_values_stand_before_each_token_was_chosen(model):
    critic = Critic(model)
    with torch.no_grad():
        critic.head.weight.normal_(generator=torch.Generator().manual_seed(0))
        batch = collate(SEQUENCES, [0, 1, 2], pad_token_id=0)
        found = values_of(critic, batch)
        for row, (prompt, response) in enumerate(zip(SEQUENCES.prompts, SEQUENCES.responses, strict=True)):
            whole = torch.tensor([[*prompt, *response]])
            states = critic.backbone(whole).last_hidden_state[0] @ critic.head.weight[0]
            expected = states[len(prompt) - 1 : len(prompt) - 1 + len(response)]
            assert_close(found[row, : len(response)], expected, atol=2e-6, rtol=1e-5)
    assert found[~batch.mask].abs().sum() == 0


def test_a_new_critic_prefers_no_state(model):
    values = values_of(Critic(model), collate(SEQUENCES, [0, 1, 2], pad_token_id=0))
    assert values.abs().max() == 0


def test_a_critic_is_not_the_policy(model):
    """Training one must leave the other alone."""
    critic = Critic(model)
    before = model.get_input_embeddings().weight.clone()
    with torch.no_grad():
        critic.backbone.get_input_embeddings().weight.add_(1.0)
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_rounds_hold_every_row_once_within_the_budget(num_ranks):
    lengths = [5, 40, 12, 12, 33, 8, 21, 64, 2, 2, 17]
    rounds = plan(lengths, tokens_per_micro_batch=64, num_ranks=num_ranks)
    assert sorted(row for parts in rounds for part in parts for row in part) == list(range(len(lengths)))
    for parts in rounds:
        assert len(parts) == num_ranks
        for part in parts:
            assert len(part) * max((lengths[row] for row in part), default=0) <= 64 * (1 if num_ranks == 1 else 2)


def test_nothing_to_predict_is_refused():
    with pytest.raises(ValueError, match="a prompt or a response has no token"):
        collate(Sequences([[1]], [[]]), [0], pad_token_id=0)
