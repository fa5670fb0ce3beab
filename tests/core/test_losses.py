"""Losses: against the slow version, worked by hand, and additive over parts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.core.agreement import agreement, disagreement_mask, preference_weight
from scpo_ray.core.losses import batch_normalizer, reward_centering_loss, weighted_bradley_terry_loss
from tests import reference

rewards = st.one_of(st.floats(-8, 8), st.sampled_from([-1e4, -745.2, -88.8, 0.0, 88.8, 745.2, 1e4]))
pairs = st.lists(st.tuples(rewards, rewards, st.floats(0, 1), st.floats(-3, 3)), min_size=1, max_size=12)


def _tensors(rows):
    return torch.tensor(rows, dtype=torch.float64).T


@settings(max_examples=100, deadline=None)
@given(pairs)
def test_weighted_bradley_terry_loss_matches_reference(rows):
    chosen, rejected, weights, margins = _tensors(rows)
    plain = weighted_bradley_terry_loss(chosen_rewards=chosen, rejected_rewards=rejected, weights=weights)
    assert plain.item() == pytest.approx(
        reference.bradley_terry(chosen.tolist(), rejected.tolist(), weights.tolist()), rel=1e-12, abs=1e-12
    )
    full = weighted_bradley_terry_loss(
        chosen_rewards=chosen, rejected_rewards=rejected, weights=weights, margins=margins, normalizer=3.7
    )
    expected = reference.bradley_terry(
        chosen.tolist(), rejected.tolist(), weights.tolist(), margins.tolist(), normalizer=3.7
    )
    assert full.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_weighted_bradley_terry_loss_by_hand():
    loss = weighted_bradley_terry_loss(
        chosen_rewards=torch.tensor([0.0, math.log(3)], dtype=torch.float64),
        rejected_rewards=torch.tensor([0.0, 0.0], dtype=torch.float64),
        weights=torch.tensor([1.0, 0.5], dtype=torch.float64),
    )
    # σ(0) = 1/2 and σ(ln 3) = 3/4: (1 * ln 2 + 0.5 * ln 4/3) / 2
    assert loss.item() == pytest.approx((math.log(2) + 0.5 * math.log(4 / 3)) / 2, rel=1e-14)


def test_margin_must_separate_the_pair():
    loss = weighted_bradley_terry_loss(
        chosen_rewards=torch.tensor([2.0], dtype=torch.float64),
        rejected_rewards=torch.tensor([0.5], dtype=torch.float64),
        weights=torch.ones(1, dtype=torch.float64),
        margins=torch.tensor([1.5], dtype=torch.float64),
    )
    assert loss.item() == pytest.approx(math.log(2), rel=1e-14)


def test_gradient_is_weight_times_error_over_the_number_of_pairs():
    chosen = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.0, 3.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 0.25], dtype=torch.float64)
    weighted_bradley_terry_loss(chosen_rewards=chosen, rejected_rewards=rejected, weights=weights).backward()
    expected = [-1.0 * 0.5 / 2, -0.25 * reference.sigmoid(2.0) / 2]
    assert chosen.grad.tolist() == pytest.approx(expected, rel=1e-14)
    assert rejected.grad.tolist() == pytest.approx([-value for value in expected], rel=1e-14)


@pytest.mark.parametrize("gap", [-1e4, 1e4])
def test_extreme_rewards_stay_finite_in_float32(gap):
    chosen = torch.tensor([gap], requires_grad=True)
    loss = weighted_bradley_terry_loss(chosen_rewards=chosen, rejected_rewards=torch.zeros(1), weights=torch.ones(1))
    loss.backward()
    assert loss.item() == max(-gap, 0.0)
    assert chosen.grad.item() == (-1.0 if gap < 0 else 0.0)


@settings(max_examples=60, deadline=None)
@given(pairs, st.sampled_from(["pairs", "weights"]), st.data())
def test_parts_of_any_partition_sum_to_the_whole(rows, normalization, data):
    part_of = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    rows = [(plus, minus, weight + 0.01, margin) for plus, minus, weight, margin in rows]
    chosen, rejected, weights, margins = _tensors(rows)
    normalizer = batch_normalizer(weights=weights, normalization=normalization)

    def loss_of(mask):
        parameter = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        plus, minus = parameter[0] * chosen[mask] + parameter[1], parameter[0] * rejected[mask] + 2 * parameter[1]
        loss = weighted_bradley_terry_loss(
            chosen_rewards=plus,
            rejected_rewards=minus,
            weights=weights[mask],
            margins=margins[mask],
            normalizer=normalizer,
        ) + reward_centering_loss(chosen_rewards=plus, rejected_rewards=minus, normalizer=len(rows))
        loss.backward()
        return torch.stack([loss.detach(), *parameter.grad])

    whole = loss_of(torch.ones(len(rows), dtype=torch.bool))
    parts = sum(loss_of(torch.tensor([part == number for part in part_of])) for number in range(4))
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-10)


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_reward_centering_loss_matches_reference(rows):
    chosen, rejected, _, _ = _tensors(rows)
    loss = reward_centering_loss(chosen_rewards=chosen, rejected_rewards=rejected)
    assert loss.item() == pytest.approx(reference.centering(chosen.tolist(), rejected.tolist()), rel=1e-12)


def test_reward_centering_loss_by_hand():
    chosen, rejected = torch.tensor([1.0, 2.0]), torch.tensor([2.0, -2.0])
    assert reward_centering_loss(chosen_rewards=chosen, rejected_rewards=rejected).item() == 4.5
    assert reward_centering_loss(chosen_rewards=chosen, rejected_rewards=rejected, normalizer=9.0).item() == 1.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=30))
def test_batch_normalizer_counts_pairs_or_adds_weights(weights):
    tensor = torch.tensor(weights, dtype=torch.float64)
    assert batch_normalizer(weights=tensor, normalization="pairs") == len(weights)
    assert batch_normalizer(weights=tensor, normalization="weights") == pytest.approx(math.fsum(weights), rel=1e-12)


def test_normalizing_by_weights_ignores_their_scale():
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    losses = [
        weighted_bradley_terry_loss(
            chosen_rewards=chosen,
            rejected_rewards=rejected,
            weights=weights,
            normalizer=batch_normalizer(weights=weights, normalization="weights"),
        ).item()
        for weights in (torch.tensor([0.4, 0.8]), torch.tensor([0.1, 0.2]))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_no_pairs_have_no_loss():
    empty = torch.zeros(0, requires_grad=True)
    loss = weighted_bradley_terry_loss(chosen_rewards=empty, rejected_rewards=empty, weights=torch.zeros(0))
    assert loss.item() == 0.0
    assert reward_centering_loss(chosen_rewards=empty, rejected_rewards=empty).item() == 0.0


def test_broadcastable_shapes_are_refused():
    three, one = torch.zeros(3), torch.zeros(1)
    for chosen, rejected, weights in ((three, one, three), (one, three, three), (three, three, one)):
        with pytest.raises(ValueError, match=r"expected equal shapes, got chosen \(\d,\), rejected \(\d,\)"):
            weighted_bradley_terry_loss(chosen_rewards=chosen, rejected_rewards=rejected, weights=weights)
    with pytest.raises(ValueError, match="expected equal shapes"):
        weighted_bradley_terry_loss(chosen_rewards=three, rejected_rewards=three, weights=three, margins=one)
    with pytest.raises(ValueError, match="expected equal shapes"):
        reward_centering_loss(chosen_rewards=three, rejected_rewards=one)


@pytest.mark.parametrize("normalizer", [0.0, -1.0, float("nan")])
def test_normalizer_must_be_positive(normalizer):
    with pytest.raises(ValueError, match="normalizer must be positive"):
        weighted_bradley_terry_loss(
            chosen_rewards=torch.zeros(1),
            rejected_rewards=torch.zeros(1),
            weights=torch.ones(1),
            normalizer=normalizer,
        )


def test_a_batch_without_weight_has_no_mean():
    with pytest.raises(ValueError, match=r"a batch of 2 pairs with weights summing to 0\.0 has no mean loss"):
        batch_normalizer(weights=torch.zeros(2), normalization="weights")
    with pytest.raises(ValueError, match="a batch of 0 pairs"):
        batch_normalizer(weights=torch.zeros(0), normalization="pairs")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-8, 8)] * 4), min_size=1, max_size=12), st.floats(0.3, 0.9), st.floats(0.2, 3))
def test_published_formulas_in_exact_arithmetic(rows, threshold, temperature):
    """exp / (exp + exp), min(exp(gap / beta), 1) and -mean(w log sigmoid), as printed, in float64: equal to 1e-12."""
    kept_rows, p_of = reference.published(rows, threshold=threshold, temperature=temperature)
    global_chosen, global_rejected, chosen, rejected = np.array(rows, dtype=np.float64).T
    p = agreement(chosen_rewards=global_chosen, rejected_rewards=global_rejected)
    assert p.tolist() == pytest.approx(p_of, rel=1e-12)
    if min(abs(value - threshold) for value in p_of) < 1e-12:
        return  # rounding decides
    kept = disagreement_mask(agreement=p, threshold=threshold)
    weight = preference_weight(chosen_rewards=global_chosen, rejected_rewards=global_rejected, temperature=temperature)
    assert np.flatnonzero(kept).tolist() == [index for index, _, _ in kept_rows]
    assert weight[kept].tolist() == pytest.approx([w for _, w, _ in kept_rows], rel=1e-12)
    if not kept_rows:
        return
    loss = weighted_bradley_terry_loss(
        chosen_rewards=torch.from_numpy(chosen[kept]),
        rejected_rewards=torch.from_numpy(rejected[kept]),
        weights=torch.from_numpy(weight[kept]),
    )
    expected = sum(term for _, _, term in kept_rows) / len(kept_rows)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-300)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=1, max_size=12))
def test_published_formulas_give_the_same_loss(rows):
    """The published code's own arithmetic, in float32: p, filter, weight and loss of the kept pairs."""
    global_chosen, global_rejected = np.array(rows, dtype=np.float32).T
    exp_chosen, exp_rejected = np.exp(global_chosen), np.exp(global_rejected)
    published_p = exp_chosen / (exp_chosen + exp_rejected)
    published_w = np.minimum(np.exp((global_chosen - global_rejected) / np.float32(1.1)), np.float32(1))

    ours = agreement(chosen_rewards=global_chosen, rejected_rewards=global_rejected)
    weight = preference_weight(chosen_rewards=global_chosen, rejected_rewards=global_rejected, temperature=1.1)
    np.testing.assert_allclose(ours, published_p, rtol=2e-6)
    np.testing.assert_allclose(weight, published_w, rtol=5e-6)
    same_form = agreement(chosen_rewards=global_chosen, rejected_rewards=global_rejected, form="exp_ratio")
    np.testing.assert_array_equal(same_form, published_p.astype(np.float64))

    clear = np.abs(ours - 0.7) > 1e-5
    kept = disagreement_mask(agreement=ours, threshold=0.7)
    np.testing.assert_array_equal(kept[clear], (published_p < 0.7)[clear])
    if not kept.any():
        return
    chosen, rejected = torch.from_numpy(global_chosen[kept]), torch.from_numpy(global_rejected[kept])
    published_loss = -(torch.from_numpy(published_w[kept]) * torch.log(torch.sigmoid(chosen - rejected))).sum() / int(
        kept.sum()
    )
    loss = weighted_bradley_terry_loss(
        chosen_rewards=chosen, rejected_rewards=rejected, weights=torch.from_numpy(weight[kept]).float()
    )
    torch.testing.assert_close(loss, published_loss, rtol=1e-5, atol=1e-6)
