"""Policy and critic losses: against token-by-token versions, by hand, additive over parts; and a bandit that they solve."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.core.advantages import leave_one_out_advantages
from scpo_ray.core.policy_losses import clipped_policy_loss, clipped_value_loss, entropy, truncated_importance
from tests import reference
from tests.core.test_advantages import padded

number = st.floats(-3, 3)
responses = st.lists(
    st.lists(st.tuples(number, number, number, st.floats(0, 2)), min_size=1, max_size=5), min_size=1, max_size=4
)


def column(rows, index: int) -> torch.Tensor:
    return padded([[token[index] for token in row] for row in rows], fill=0.7)[0]


@settings(max_examples=100, deadline=None)
@given(responses, st.one_of(st.none(), st.floats(1.5, 4)))
def test_clipped_policy_loss_matches_reference(rows, dual_clip):
    _, mask = padded([[token[0] for token in row] for row in rows])
    found = clipped_policy_loss(
        log_probs=column(rows, 0),
        old_log_probs=column(rows, 1),
        advantages=column(rows, 2),
        mask=mask,
        clip_low=0.2,
        clip_high=0.3,
        dual_clip=dual_clip,
        importance=column(rows, 3),
        num_tokens=7.0,
    )
    expected = -sum(
        weight * reference.clipped_surrogate(math.exp(own - old), advantage, 0.2, 0.3, dual_clip)
        for row in rows
        for own, old, advantage, weight in row
    )
    assert found.loss.item() == pytest.approx(expected / 7, rel=1e-10, abs=1e-10)
    moved = sum(math.exp(own - old) - 1 - (own - old) for row in rows for own, old, _, _ in row)
    assert found.divergence.item() == pytest.approx(moved / 7, rel=1e-10, abs=1e-10)


def test_what_is_clipped_has_no_gradient_and_is_counted():
    """Ratio 1.5 is cut where it is praised, not where it is blamed; a dual clip of 1.2 cuts it there too."""
    own = torch.full((1, 3), math.log(1.5), dtype=torch.float64, requires_grad=True)
    arguments = {
        "log_probs": own,
        "old_log_probs": torch.zeros(1, 3, dtype=torch.float64),
        "advantages": torch.tensor([[2.0, -2.0, 0.0]], dtype=torch.float64),
        "mask": torch.ones(1, 3, dtype=torch.bool),
    }
    found = clipped_policy_loss(**arguments)
    found.loss.backward()
    assert own.grad[0].tolist() == pytest.approx([0.0, 1.5 * 2 / 3, 0.0], abs=1e-12)
    assert found.clipped_share.item() == pytest.approx(1 / 3)
    assert found.loss.item() == pytest.approx(-(1.2 * 2 - 1.5 * 2) / 3, rel=1e-12)
    own.grad = None
    dual = clipped_policy_loss(**arguments, dual_clip=1.2)
    dual.loss.backward()
    assert own.grad[0].tolist() == [0.0, 0.0, 0.0]
    assert dual.clipped_share.item() == pytest.approx(2 / 3)
    assert dual.loss.item() == pytest.approx(0.0, abs=1e-12)


def test_where_nothing_has_moved_the_gradient_is_the_advantage():
    own = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, -3.0], [0.5, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    found = clipped_policy_loss(log_probs=own, old_log_probs=own.detach(), advantages=advantages, mask=mask)
    found.loss.backward()
    assert own.grad.tolist() == [[-1 / 3, 1.0], [-0.5 / 3, 0.0]]
    assert found.divergence.item() == 0 and found.clipped_share.item() == 0


@settings(max_examples=50, deadline=None)
@given(responses)
def test_losses_of_parts_add_up(rows):
    _, mask = padded([[token[0] for token in row] for row in rows])
    total = float(mask.sum())
    policy = {
        "log_probs": column(rows, 0),
        "old_log_probs": column(rows, 1),
        "advantages": column(rows, 2),
        "mask": mask,
    }
    critic = {"values": column(rows, 0), "old_values": column(rows, 1), "returns": column(rows, 2), "mask": mask}
    for whole, part in (
        (
            clipped_policy_loss(**policy).loss,
            lambda i: clipped_policy_loss(**{k: v[i : i + 1] for k, v in policy.items()}, num_tokens=total).loss,
        ),
        (
            clipped_value_loss(**critic),
            lambda i: clipped_value_loss(**{k: v[i : i + 1] for k, v in critic.items()}, num_tokens=total),
        ),
    ):
        assert sum(part(index).item() for index in range(len(rows))) == pytest.approx(
            whole.item(), rel=1e-10, abs=1e-10
        )


@settings(max_examples=100, deadline=None)
@given(responses)
def test_clipped_value_loss_matches_reference(rows):
    _, mask = padded([[token[0] for token in row] for row in rows])
    arguments = {"values": column(rows, 0), "old_values": column(rows, 1), "returns": column(rows, 2), "mask": mask}
    count = sum(map(len, rows))
    worst = sum(reference.clipped_value_error(value, old, target, 0.2) for row in rows for value, old, target, _ in row)
    assert clipped_value_loss(**arguments).item() == pytest.approx(worst / count / 2, rel=1e-10, abs=1e-12)
    plain = sum((value - target) ** 2 for row in rows for value, _, target, _ in row)
    assert clipped_value_loss(**arguments, clip=None).item() == pytest.approx(plain / count / 2, rel=1e-10, abs=1e-12)


def test_entropy_of_known_distributions():
    logits = torch.log(torch.tensor([[[0.25, 0.25, 0.5], [1.0, 1e-30, 1e-30], [0.9, 0.05, 0.05]]], dtype=torch.float64))
    mask = torch.tensor([[True, True, False]])
    assert entropy(logits, mask).item() == pytest.approx(1.5 * math.log(2) / 2, rel=1e-9)


def test_truncated_importance_by_token_and_by_response():
    learner = torch.log(torch.tensor([[0.5, 0.5, 0.9], [0.2, 0.1, 0.5]], dtype=torch.float64))
    engine = torch.log(torch.tensor([[0.5, 0.1, 0.1], [0.4, 0.1, 0.5]], dtype=torch.float64))
    mask = torch.tensor([[True, True, False], [True, True, True]])
    arguments = {"learner_log_probs": learner, "engine_log_probs": engine, "mask": mask, "cap": 3.0}
    assert truncated_importance(**arguments).tolist() == [[1.0, 3.0, 0.0], pytest.approx([0.5, 1.0, 1.0])]
    of_responses = truncated_importance(**arguments, level="response").tolist()
    assert of_responses == [[3.0, 3.0, 0.0], pytest.approx([0.5, 0.5, 0.5])]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, m: clipped_policy_loss(log_probs=x, old_log_probs=x[:1], advantages=x, mask=m), "equal shapes"),
        (
            lambda x, m: clipped_policy_loss(log_probs=x, old_log_probs=x, advantages=x, mask=m, dual_clip=0.9),
            "dual_clip",
        ),
        (
            lambda x, m: clipped_policy_loss(log_probs=x, old_log_probs=x, advantages=x, mask=~m),
            "must be positive, got 0",
        ),
        (lambda x, m: clipped_value_loss(values=x, old_values=x, returns=x[:, :1], mask=m), "equal shapes"),
        (
            lambda x, m: truncated_importance(learner_log_probs=x, engine_log_probs=x, mask=m, cap=0.5),
            "cap must be 1 or more",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))


def test_a_bandit_reaches_its_known_optimum():
    """Reward r(a) with a price c per nat of KL from a uniform reference: the optimum is softmax(r / c)."""
    torch.manual_seed(0)
    rewards, price = torch.tensor([1.0, 0.5, 0.0, -0.5], dtype=torch.float64), 0.5
    optimum = (rewards / price).softmax(dim=0)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.02)
    mask = torch.ones(2048, 1, dtype=torch.bool)
    for _ in range(250):
        with torch.no_grad():
            old = logits.log_softmax(dim=0)
            actions = torch.multinomial(old.exp(), 2048, replacement=True)
            scores = rewards[actions] - price * (old[actions] - math.log(1 / 4))
            advantages = leave_one_out_advantages(scores.view(1, -1)).view(-1, 1)
        for _ in range(2):
            optimizer.zero_grad()
            clipped_policy_loss(
                log_probs=logits.log_softmax(dim=0)[actions].unsqueeze(1),
                old_log_probs=old[actions].unsqueeze(1),
                advantages=advantages,
                mask=mask,
            ).loss.backward()
            optimizer.step()
    assert logits.softmax(dim=0).tolist() == pytest.approx(optimum.tolist(), abs=0.02)
