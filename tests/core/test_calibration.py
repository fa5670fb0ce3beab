"""Calibration errors and the fitted temperature."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve as calibration_curve_of_sklearn
from sklearn.linear_model import LogisticRegression

from scpo_ray.core.calibration import (
    TEMPERATURE_BOUNDS,
    calibration_curve,
    expected_calibration_error,
    fit_temperature,
)


def test_curve_and_error_by_hand():
    """Confidences .6 .6 .9: the first bin is right once of two (gap .1), the last once of one (gap .1)."""
    margins = np.array([logit(0.6), -logit(0.6), logit(0.9)])
    curve = calibration_curve(margins, num_bins=5)
    assert [size for _, _, size in curve] == [2, 1]
    assert [(round(confidence, 9), accuracy) for confidence, accuracy, _ in curve] == [(0.6, 0.5), (0.9, 1.0)]
    assert expected_calibration_error(margins, num_bins=5) == pytest.approx(2 / 3 * 0.1 + 1 / 3 * 0.1)


def test_which_response_stands_first_does_not_matter():
    """The error is of the model's own choice, so a pair told the other way round (and wrong) is the same pair."""
    margins = np.random.default_rng(0).normal(size=200)
    confidences = [confidence for confidence, _, _ in calibration_curve(margins)]
    mirrored = [confidence for confidence, _, _ in calibration_curve(-margins)]
    assert confidences == pytest.approx(mirrored)
    assert min(confidences) >= 0.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=1, max_size=40), st.integers(1, 8))
def test_error_matches_a_loop(margins, num_bins):
    bins: dict[int, list[tuple[float, float]]] = {}
    for margin in margins:
        confidence = 1 / (1 + math.exp(-abs(margin)))
        correct = 0.5 if margin == 0 else float(margin > 0)
        bins.setdefault(min(int((confidence - 0.5) * 2 * num_bins), num_bins - 1), []).append((confidence, correct))
    expected = sum(
        len(rows) / len(margins) * abs(sum(c for c, _ in rows) / len(rows) - sum(a for _, a in rows) / len(rows))
        for rows in bins.values()
    )
    assert expected_calibration_error(np.array(margins), num_bins=num_bins) == pytest.approx(expected)


def test_bins_of_equal_mass_hold_equal_numbers():
    curve = calibration_curve(np.random.default_rng(1).exponential(size=1000), num_bins=10, bins="mass")
    assert [size for _, _, size in curve] == [100] * 10


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_is_recovered_and_mends_the_error(temperature):
    random = np.random.default_rng(2)
    log_odds = random.normal(0, 1.5, 20_000)
    sign = np.where(random.random(20_000) < expit(log_odds), 1.0, -1.0)
    margins = sign * log_odds * temperature
    found = fit_temperature(margins)
    assert found == pytest.approx(temperature, rel=0.05)
    assert expected_calibration_error(margins / found) < 0.01


@pytest.mark.parametrize("start", [1e-3, 1.0, 50.0])
def test_temperature_is_what_a_search_finds_from_wherever_it_starts(start):
    random = np.random.default_rng(3)
    for scale in (0.01, 1.0, 300.0):
        margins = random.normal(0.5, 1.0, size=300) * scale

        def loss(log_temperature: float, margins: np.ndarray = margins) -> float:
            return float(np.logaddexp(0, -margins * np.exp(-log_temperature)).mean())

        bounds = tuple(np.log(TEMPERATURE_BOUNDS))
        searched = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
        best = min((*bounds, searched), key=loss)
        assert fit_temperature(margins, start=start) == pytest.approx(np.exp(best), rel=1e-5)


def test_temperature_matches_logistic_regression():
    """The same likelihood: σ(margin / T) with both orders of every pair, slope 1 / T, no offset, no penalty."""
    margins = np.random.default_rng(3).normal(0.5, 1, 300)
    features = np.concatenate([margins, -margins]).reshape(-1, 1)
    labels = np.repeat([1, 0], 300)
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(features, labels)
    assert fit_temperature(margins) == pytest.approx(1 / fit.coef_[0, 0], rel=1e-4)


def test_values_where_nothing_can_be_fitted():
    assert math.isnan(fit_temperature(np.zeros(0))) and math.isnan(expected_calibration_error(np.zeros(0)))
    assert calibration_curve(np.zeros(0)) == []
    assert fit_temperature(np.array([1.0, 2.0])) == pytest.approx(TEMPERATURE_BOUNDS[0])
    assert fit_temperature(np.array([-1.0, -2.0])) == pytest.approx(TEMPERATURE_BOUNDS[1])
    assert expected_calibration_error(np.zeros(4)) == 0.0, "a model that scores everything equal claims a coin's odds"
    for function in (fit_temperature, expected_calibration_error):
        with pytest.raises(ValueError, match="1 of 2 reward margins are not finite"):
            function(np.array([np.nan, 1.0]))


def test_the_adaptive_error_by_hand():
    """Confidences .6 .7 | .8 .9 in two bins of equal mass: half right of .65, all right of .85."""
    margins = np.array([logit(0.6), -logit(0.7), logit(0.8), logit(0.9)])
    assert expected_calibration_error(margins, num_bins=2, bins="mass") == pytest.approx((0.15 + 0.15) / 2)
    assert expected_calibration_error(margins, num_bins=1, bins="mass") == pytest.approx(0.0)  # 0.75 of 0.75


def test_the_curve_matches_scikit_learn():
    margins = np.random.default_rng(4).normal(0.5, 2, 400)
    confidence = expit(np.abs(margins))
    for bins, strategy in (("width", "uniform"), ("mass", "quantile")):
        # scikit-learn's uniform bins lie in [0, 1]: twenty of them have our ten in their upper half
        number = 20 if bins == "width" else 10
        accuracy, predicted = calibration_curve_of_sklearn(margins > 0, confidence, n_bins=number, strategy=strategy)
        found = calibration_curve(margins, num_bins=10, bins=bins)
        assert [row[0] for row in found] == pytest.approx(predicted.tolist())
        assert [row[1] for row in found] == pytest.approx(accuracy.tolist())
