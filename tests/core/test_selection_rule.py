"""The rule behind `auto`: against simulated labels and the real loss, and against values worked by hand."""

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from scpo_ray.core.agreement import agreement, disagreement_mask, preference_weight
from scpo_ray.core.losses import weighted_bradley_terry_loss
from scpo_ray.core.selection_rule import (
    SCALE_BOUND,
    automatic,
    bias,
    information,
    resting_scale,
    unbiased_temperature,
)

INFINITE = float("inf")


def simulated_pull(margins: np.ndarray, *, threshold: float, temperature: float, turned: bool, seed: int) -> np.ndarray:
    """Per pair: minus the gradient of SCPO's loss along the scale of the rewards, at scale 1, for one draw of labels.

    Goes the long way: draws who was chosen, asks the real filter and weights, differentiates the real loss.
    """
    rng = np.random.default_rng(seed)
    agrees = rng.random(len(margins)) < expit(-margins if turned else margins)
    chosen, rejected = np.where(agrees, margins, 0.0), np.where(agrees, 0.0, margins)
    kept = disagreement_mask(agreement=agreement(chosen_rewards=chosen, rejected_rewards=rejected), threshold=threshold)
    weights = kept * preference_weight(chosen_rewards=chosen, rejected_rewards=rejected, temperature=temperature)
    scale = torch.ones(len(margins), dtype=torch.float64, requires_grad=True)
    loss = weighted_bradley_terry_loss(
        chosen_rewards=scale * torch.tensor(chosen),
        rejected_rewards=scale * torch.tensor(rejected),
        weights=torch.tensor(weights),
    )
    (gradient,) = torch.autograd.grad(loss, scale)
    return -gradient.numpy() * len(margins)


@pytest.fixture(scope="module")
def margins() -> np.ndarray:
    return np.abs(np.random.default_rng(0).normal(scale=1.5, size=400_000))


@pytest.mark.parametrize(("threshold", "temperature"), [(0.7, 1.1), (0.8, INFINITE), (0.999999, 2.0), (0.9, 5.0)])
def test_bias_is_the_mean_pull_of_the_real_loss_on_a_community_that_does_not_differ(margins, threshold, temperature):
    pull = simulated_pull(margins, threshold=threshold, temperature=temperature, turned=False, seed=1)
    unit = (margins * expit(margins) * expit(-margins)).mean()
    error = 4 * pull.std() / unit / np.sqrt(len(pull))
    assert bias(margins, threshold=threshold, temperature=temperature) == pytest.approx(pull.mean() / unit, abs=error)
    assert error < 0.02


@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.9, 0.97])
def test_at_the_unbiased_temperature_the_real_loss_leaves_a_community_that_does_not_differ_alone(margins, threshold):
    temperature = unbiased_temperature(margins, threshold=threshold)
    assert bias(margins, threshold=threshold, temperature=temperature) == pytest.approx(0, abs=1e-9)
    pull = simulated_pull(margins, threshold=threshold, temperature=temperature, turned=False, seed=2)
    assert abs(pull.mean()) < 4 * pull.std() / np.sqrt(len(pull))


@pytest.mark.parametrize(("threshold", "temperature"), [(0.7, 1.1), (0.8, 3.0), (0.9, INFINITE)])
def test_information_is_the_ratio_of_simulated_signal_to_noise(margins, threshold, temperature):
    def signal_to_noise(threshold: float, temperature: float) -> float:
        stays, turned = (
            simulated_pull(margins, threshold=threshold, temperature=temperature, turned=turned, seed=3 + turned)
            for turned in (False, True)
        )
        # The variance given the margins: what varies from margin to margin in the mean is no noise.
        order = np.argsort(margins).reshape(-1, 100)
        noise = stays[order].var(axis=1, ddof=1).mean()
        return (stays.mean() - turned.mean()) ** 2 / noise

    expected = signal_to_noise(threshold, temperature) / signal_to_noise(1 - 1e-12, INFINITE)
    found = information(margins, threshold=threshold, temperature=temperature)
    assert found == pytest.approx(expected, rel=0.02)


def test_hand_worked_values_for_one_margin_below_and_one_above_the_threshold():
    # Margins ln 2 and ln 4: σ = 2/3 and 4/5, pulls ln 2 * 2/9 and ln 4 * 4/25; τ = 0.75 has logit ln 3, between them.
    margins = np.log([2.0, 4.0])
    small, large = np.log(2) * 2 / 9, np.log(4) * 4 / 25
    assert bias(margins, threshold=0.75, temperature=1.0) == pytest.approx(
        (small * (1 - 1 / 2) + large * (0 - 1 / 4)) / (small + large)
    )
    assert bias(margins, threshold=0.75, temperature=INFINITE) == pytest.approx(-large / (small + large))
    # Unbiased: small (1 - x) = large x² + small 0 with x = 2^(-1/β), x² = 4^(-1/β); large = 1.44 small.
    x = (-1 + np.sqrt(1 + 4 * 1.44)) / (2 * 1.44)
    assert unbiased_temperature(margins, threshold=0.75) == pytest.approx(-np.log(2) / np.log(x))


def test_the_filter_alone_unlearns_and_the_weights_alone_sharpen(margins):
    assert bias(margins, threshold=0.7, temperature=INFINITE) < -0.5
    assert bias(margins, threshold=1.0, temperature=1.1) > 0.2
    assert bias(margins, threshold=1.0, temperature=INFINITE) == 0
    assert information(margins, threshold=1.0, temperature=INFINITE) == 1


def test_more_information_asks_for_a_higher_threshold_and_gentler_weights(margins):
    chosen = [automatic(margins, least_information=least) for least in (0.3, 0.5, 0.8, 0.9, 0.99)]
    assert chosen == sorted(chosen) and len(set(chosen)) == len(chosen)
    for (threshold, temperature), least in zip(chosen, (0.3, 0.5, 0.8, 0.9, 0.99), strict=True):
        assert information(margins, threshold=threshold, temperature=temperature) >= least
        lower = threshold - 0.005
        assert information(margins, threshold=lower, temperature=unbiased_temperature(margins, threshold=lower)) < least
    few = margins[:4000]
    threshold, temperature = automatic(few, least_information=1.0)  # nothing may be dropped
    assert logit(threshold) > few.max() and temperature == INFINITE


def test_the_published_constants_are_the_rule_at_unit_margins_and_half_of_the_information():
    margins = np.abs(np.random.default_rng(1).normal(size=200_000))
    threshold, temperature = automatic(margins, least_information=0.5)
    assert threshold == pytest.approx(0.7, abs=0.01) and temperature == pytest.approx(1.1, abs=0.1)


def test_values_where_nothing_can_be_said():
    equal = np.zeros(5)
    assert np.isnan(bias(equal, threshold=0.7, temperature=1.0))
    assert np.isnan(information(equal, threshold=0.7, temperature=1.0))
    threshold, temperature = automatic(equal, least_information=0.9)
    assert threshold > 0.999 and temperature == INFINITE, "everything is kept"
    # No agreeing label is kept at all: nothing can repay the filter, weights can only shrink.
    assert unbiased_temperature(np.array([1.0, 2.0]), threshold=0.5) == 1e-2
    assert unbiased_temperature(np.array([0.1, 0.2]), threshold=0.7) == INFINITE  # nothing is dropped
    assert unbiased_temperature(np.array([]), threshold=0.7) == INFINITE


def test_quantiles_stand_for_many_margins(margins):
    few = automatic(margins[:4096], least_information=0.8)
    assert automatic(margins, least_information=0.8) == pytest.approx(few, rel=0.05)


@pytest.mark.parametrize(
    ("margins", "threshold", "temperature"),
    [([1.0, np.nan], 0.7, 1.0), ([-0.1], 0.7, 1.0), ([1.0], 0.0, 1.0), ([1.0], 1.1, 1.0), ([1.0], 0.7, 0.0)],
)
def test_refuses_what_has_no_meaning(margins, threshold, temperature):
    with pytest.raises(ValueError, match=r"margins must be|must be in|must be positive"):
        bias(np.array(margins), threshold=threshold, temperature=temperature)


class TestOfACommunityThatDiffers:
    """A third of the pairs are turned: labels follow σ(-m) there."""

    @pytest.fixture(scope="class")
    def agrees(self, margins) -> np.ndarray:
        rng = np.random.default_rng(4)
        signed = np.where(rng.random(len(margins)) < 1 / 3, -margins, margins)
        return (rng.random(len(margins)) < expit(signed)).astype(float)

    def test_full_fine_tuning_along_the_scale_rests_where_it_is_said(self, margins, agrees):
        """By another way: gradient descent on the real loss in the scale alone."""
        margins, agrees = margins[:20_000], agrees[:20_000]
        chosen, rejected = (torch.tensor(np.where(agrees == side, margins, 0.0)) for side in (1, 0))
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([scale], tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = weighted_bradley_terry_loss(
                chosen_rewards=scale * chosen, rejected_rewards=scale * rejected, weights=torch.ones(len(chosen))
            )
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
        assert 0 < scale.item() < 0.6
        assert resting_scale(margins, agrees) == pytest.approx(scale.item(), abs=1e-4)

    @pytest.mark.parametrize("threshold", [0.7, 0.9])
    def test_at_the_unbiased_temperature_scpo_rests_where_full_fine_tuning_does(self, margins, agrees, threshold):
        """With the real filter, weights and loss: no gradient along the scale at full fine-tuning's resting place."""
        temperature = unbiased_temperature(margins, threshold=threshold, agrees=agrees)
        assert bias(margins, threshold=threshold, temperature=temperature, agrees=agrees) == pytest.approx(0, abs=1e-8)
        chosen, rejected = (np.where(agrees == side, margins, 0.0) for side in (1, 0))
        kept = disagreement_mask(
            agreement=agreement(chosen_rewards=chosen, rejected_rewards=rejected), threshold=threshold
        )
        weights = kept * preference_weight(chosen_rewards=chosen, rejected_rewards=rejected, temperature=temperature)
        scale = torch.tensor(resting_scale(margins, agrees), requires_grad=True)
        loss = weighted_bradley_terry_loss(
            chosen_rewards=scale * torch.tensor(chosen),
            rejected_rewards=scale * torch.tensor(rejected),
            weights=torch.tensor(weights),
        )
        (gradient,) = torch.autograd.grad(loss, scale)
        assert gradient.item() == pytest.approx(0, abs=1e-8)

    @pytest.mark.parametrize("threshold", [0.7, 0.9])
    def test_its_weights_are_lighter_than_those_for_one_that_does_not_differ(self, margins, agrees, threshold):
        alike = unbiased_temperature(margins, threshold=threshold)
        assert unbiased_temperature(margins, threshold=threshold, agrees=agrees) < 0.9 * alike

    def test_observed_labels_of_one_that_does_not_differ_say_what_their_probabilities_say(self, margins):
        agrees = (np.random.default_rng(5).random(len(margins)) < expit(margins)).astype(float)
        assert resting_scale(margins, agrees) == pytest.approx(1, abs=0.02)
        found = unbiased_temperature(margins, threshold=0.7, agrees=agrees)
        assert found == pytest.approx(unbiased_temperature(margins, threshold=0.7), rel=0.02)
        assert unbiased_temperature(margins, threshold=0.7, agrees=expit(margins)) == pytest.approx(
            unbiased_temperature(margins, threshold=0.7)
        )

    def test_groups_stand_for_many_pairs(self, margins, agrees):
        groups = automatic(margins, least_information=0.5, agrees=agrees)
        few = automatic(margins[:4096], least_information=0.5, agrees=agrees[:4096])
        assert groups == pytest.approx(few, rel=0.1)

    def test_labels_that_are_all_alike_have_no_resting_place(self):
        margins = np.array([0.5, 1.0, 2.0])
        assert resting_scale(margins, np.ones(3)) == SCALE_BOUND
        assert resting_scale(margins, np.zeros(3)) == -SCALE_BOUND
        assert unbiased_temperature(margins, threshold=0.7, agrees=np.ones(3)) == 1e3, (
            "there is nothing to make lighter"
        )
        assert np.isfinite(bias(margins, threshold=0.7, temperature=1.0, agrees=np.zeros(3)))
