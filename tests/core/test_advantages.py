"""Advantages: against the definitions written out, by hand, and blind to what lies outside of the mask."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.core.advantages import (
    generalized_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
    shaped_rewards,
    whitened,
)
from tests import reference

number = st.floats(-5, 5)
responses = st.lists(st.lists(st.tuples(number, number, number), min_size=1, max_size=6), min_size=1, max_size=4)


def padded(rows: list[list[float]], fill: float = float("nan")) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unequal length and their mask; what lies outside is poison."""
    width = max(map(len, rows)) + 1
    values = torch.full((len(rows), width), fill, dtype=torch.float64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        values[index, : len(row)] = torch.tensor(row, dtype=torch.float64)
        mask[index, : len(row)] = True
    return values, mask


@settings(max_examples=100, deadline=None)
@given(responses, st.floats(0, 1), st.floats(0, 1))
def test_generalized_advantages_match_the_definition(rows, discount, trace_decay):
    rewards, mask = padded([[token[0] for token in row] for row in rows])
    values, _ = padded([[token[1] for token in row] for row in rows])
    advantages, returns = generalized_advantages(
        rewards=rewards, values=values, mask=mask, discount=discount, trace_decay=trace_decay
    )
    for index, row in enumerate(rows):
        expected = reference.generalized_advantages(
            [token[0] for token in row], [token[1] for token in row], discount, trace_decay
        )
        assert advantages[index, : len(row)].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
        targets = [a + token[1] for a, token in zip(expected, row, strict=True)]
        assert returns[index, : len(row)].tolist() == pytest.approx(targets, rel=1e-12, abs=1e-12)
        assert not advantages[index, len(row) :].any() and not returns[index, len(row) :].any()


def test_generalized_advantages_by_hand():
    """γ = 1/2, λ = 1/2, rewards 0, 0, 8, values 1, 2, 4: δ = 0, 0, 4."""
    advantages, returns = generalized_advantages(
        rewards=torch.tensor([[0.0, 0.0, 8.0]]),
        values=torch.tensor([[1.0, 2.0, 4.0]]),
        mask=torch.ones(1, 3, dtype=torch.bool),
        discount=0.5,
        trace_decay=0.5,
    )
    assert advantages.tolist() == [[0.25, 1.0, 4.0]]
    assert returns.tolist() == [[1.25, 3.0, 8.0]]


@settings(max_examples=50, deadline=None)
@given(responses, st.floats(0, 2))
def test_shaped_rewards_match_the_definition(rows, coefficient):
    own, mask = padded([[token[0] for token in row] for row in rows])
    other, _ = padded([[token[1] for token in row] for row in rows])
    scores = torch.tensor([row[0][2] for row in rows], dtype=torch.float64)
    found = shaped_rewards(
        scores=scores, log_probs=own, reference_log_probs=other, mask=mask, kl_coefficient=coefficient
    )
    for index, row in enumerate(rows):
        expected = reference.shaped_rewards(
            row[0][2], [token[0] for token in row], [token[1] for token in row], coefficient
        )
        assert found[index, : len(row)].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert not found[index, len(row) :].any()


def test_a_response_without_tokens_is_refused():
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match="1 responses have no token"):
        shaped_rewards(
            scores=torch.ones(2),
            log_probs=torch.zeros(2, 2),
            reference_log_probs=torch.zeros(2, 2),
            mask=mask,
            kl_coefficient=0.1,
        )


def test_whitening_is_over_the_masked_tokens_alone():
    values, mask = padded([[1.0, 2.0], [6.0]])
    found = whitened(values, mask)
    own = np.array([1.0, 2.0, 6.0])
    assert found[mask].tolist() == pytest.approx(((own - 3) / own.std()).tolist(), rel=1e-8)
    assert not found[~mask].any()
    assert not whitened(torch.full((1, 3), 7.0), torch.ones(1, 3, dtype=torch.bool)).any(), "equal values stay finite"
    with pytest.raises(ValueError, match="no token to whiten over"):
        whitened(values, torch.zeros_like(mask))


def test_leave_one_out_by_hand_and_by_the_definition():
    scores = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    found = leave_one_out_advantages(scores)
    assert found[0].tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5], rel=1e-12)
    assert found[1].tolist() == [0, 0, 0]


def test_group_relative_by_hand():
    scores = torch.tensor([[1.0, 3.0], [0.0, 0.2]], dtype=torch.float64)
    found = group_relative_advantages(scores, epsilon=0.0)
    assert found[0].tolist() == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)], rel=1e-12)
    assert found[1].tolist() == pytest.approx(found[0].tolist(), rel=1e-12), (
        "the division hides that they hardly differ"
    )
    assert group_relative_advantages(scores, scales=False)[1].tolist() == pytest.approx([-0.1, 0.1], rel=1e-12)
    same = group_relative_advantages(torch.full((1, 4), 2.0))
    assert not same.any(), "samples that score alike say nothing"


@pytest.mark.parametrize("advantages", [leave_one_out_advantages, group_relative_advantages])
def test_a_single_sample_cannot_be_compared(advantages):
    with pytest.raises(ValueError, match="prompts need two or more samples to be compared, got 1"):
        advantages(torch.ones(3, 1))
