"""Compositions of rewards by hand, and what each of them would have a policy do."""

import math

import pytest
import torch

from scpo_ray.core.compose import adjusted, composed, normalized

REWARDS = torch.tensor([[2.0, -1.0], [0.0, 0.5]], dtype=torch.float64)
EQUAL = torch.ones(2, dtype=torch.float64)


def test_a_mixture_is_the_weighted_mean():
    found = composed(REWARDS, weights=torch.tensor([3.0, 1.0], dtype=torch.float64), composition="mixture")
    assert found.tolist() == [(3 * 2 - 1) / 4, 0.125]
    one = composed(REWARDS[:, :1], weights=torch.tensor([5.0], dtype=torch.float64), composition="mixture")
    assert one.tolist() == [2.0, 0.0]


def test_max_min_takes_the_community_that_is_worst_off_on_average():
    """Means 1 and -0.25: the second, although the second response pleases it more than the first community."""
    assert composed(REWARDS, weights=EQUAL, composition="max_min").tolist() == [-1.0, 0.5]
    assert composed(REWARDS + torch.tensor([-3.0, 0.0]), weights=EQUAL, composition="max_min").tolist() == [-1.0, -3.0]


def test_max_min_has_the_gradient_of_the_lowest_mean():
    """By another way: the derivative of min_c mean(r_c) in each reward is that of the composed mean."""
    rewards = REWARDS.clone().requires_grad_(True)
    composed(rewards, weights=EQUAL, composition="max_min").mean().backward()
    other = REWARDS.clone().requires_grad_(True)
    other.mean(dim=0).min().backward()
    assert rewards.grad.tolist() == other.grad.tolist()


def test_a_conjunction_gains_where_a_community_is_discontent():
    found = composed(REWARDS, weights=EQUAL, composition="conjunction")
    assert found[0].item() == pytest.approx((-math.log1p(math.exp(-2)) - math.log1p(math.e)) / 2, rel=1e-12)
    rewards = torch.tensor([[3.0, -3.0]], dtype=torch.float64, requires_grad=True)
    composed(rewards, weights=EQUAL, composition="conjunction").sum().backward()
    content, discontent = rewards.grad[0].tolist()
    assert discontent == pytest.approx(0.5 / (1 + math.exp(-3)), rel=1e-12) and content < discontent / 19


def test_rewards_are_put_on_one_scale():
    found = normalized(
        REWARDS,
        mean=torch.tensor([1.0, 0.0], dtype=torch.float64),
        deviation=torch.tensor([2.0, 0.5], dtype=torch.float64),
    )
    assert found.tolist() == [[0.5, -2.0], [-0.5, 1.0]]


def test_penalties_come_after_the_clip():
    found = adjusted(
        torch.tensor([9.0, -9.0, 1.0], dtype=torch.float64),
        lengths=torch.tensor([10, 0, 4]),
        is_finished=torch.tensor([True, True, False]),
        clip=5.0,
        length_penalty=0.1,
        unfinished_penalty=2.0,
    )
    assert found.tolist() == pytest.approx([5 - 1, -5, 1 - 2 - 0.4], rel=1e-12)
    kept = adjusted(torch.tensor([9.0]), lengths=torch.tensor([10]), is_finished=torch.tensor([False]))
    assert kept.tolist() == [9.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0], r"\(1,\) weights for 2 communities"), ([1.0, 0.0], "weights must be positive"), ([1.0, -1.0], "positive")],
)
def test_weights_that_make_no_sense_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        composed(REWARDS, weights=torch.tensor(weights, dtype=torch.float64), composition="mixture")


def test_a_model_that_wants_nothing_is_refused():
    with pytest.raises(ValueError, match=r"must be positive, got \[1.0, 0.0\]"):
        normalized(REWARDS, mean=EQUAL, deviation=torch.tensor([1.0, 0.0], dtype=torch.float64))
