"""Divergence estimators against the exact divergence, and the adaptive coefficient by hand."""

import math

import pytest
import torch

from scpo_ray.core.kl import AdaptiveKL, FixedKL, kl_estimate


def exact(estimator: str, policy: torch.Tensor, reference: torch.Tensor) -> float:
    """The estimator's expectation under the policy: a sum over all tokens, each with its probability."""
    found = kl_estimate(log_probs=policy.log(), reference_log_probs=reference.log(), estimator=estimator)
    return float((policy * found).sum())


def test_k1_and_k3_have_the_divergence_as_expectation_and_k2_nearly():
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    divergence = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.4)
    assert exact("k1", policy, reference) == pytest.approx(divergence, rel=1e-12)
    assert exact("k3", policy, reference) == pytest.approx(divergence, rel=1e-12)
    assert exact("k2", policy, reference) == pytest.approx(divergence, rel=0.05)
    assert exact("k2", policy, reference) != pytest.approx(divergence, rel=1e-3), "it is biased"


def test_estimates_of_single_tokens_by_hand():
    own, other = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    values = {
        name: kl_estimate(log_probs=own, reference_log_probs=other, estimator=name).item()
        for name in ("k1", "k2", "k3")
    }
    assert values["k1"] == pytest.approx(math.log(2), rel=1e-6)
    assert values["k2"] == pytest.approx(math.log(2) ** 2 / 2, rel=1e-6)
    assert values["k3"] == pytest.approx(0.5 - 1 + math.log(2), rel=1e-6)
    less_likely = kl_estimate(log_probs=other, reference_log_probs=own, estimator="k1")
    assert less_likely.item() == pytest.approx(-math.log(2), rel=1e-6)


def test_shapes_must_be_equal():
    with pytest.raises(ValueError, match=r"expected equal shapes, got \(3,\) and, of the reference, \(1,\)"):
        kl_estimate(log_probs=torch.zeros(3), reference_log_probs=torch.zeros(1))


def test_an_adaptive_coefficient_follows_its_budget():
    controller = AdaptiveKL(coefficient=0.1, target=6.0, horizon=1000.0)
    # 50% too far is clipped to 20%, of which a tenth of a horizon takes a tenth
    assert controller.after(kl=9.0, num_sequences=100).coefficient == pytest.approx(0.1 * 1.02, rel=1e-12)
    assert controller.after(kl=0.0, num_sequences=100).coefficient == pytest.approx(0.1 * 0.98, rel=1e-12)
    assert controller.after(kl=6.6, num_sequences=1000).coefficient == pytest.approx(0.1 * 1.1, rel=1e-12)
    assert controller.after(kl=6.0, num_sequences=100) == controller
    assert FixedKL(0.1).after(kl=100.0, num_sequences=100) == FixedKL(0.1)


@pytest.mark.parametrize("name", ["coefficient", "target", "horizon"])
def test_an_adaptive_coefficient_needs_positive_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        AdaptiveKL(**({"coefficient": 0.1, "target": 6.0, "horizon": 1000.0} | {name: 0.0}))
