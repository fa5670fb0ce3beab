"""τ and β of a community: as configured, or by the rule, in whatever units the strategies work."""

import math

import numpy as np
import pytest
from scipy.special import expit

from scpo_ray.config import SelectConfig
from scpo_ray.core.selection_rule import automatic, bias, information, unbiased_temperature
from scpo_ray.errors import DataError
from scpo_ray.strategies.selection import STRATEGIES, PairView
from scpo_ray.strategies.selection.constants import constants, global_temperature

INFINITE = float("inf")
MARGINS = np.random.default_rng(0).normal(0.5, 2.0, size=2000)
TEMPERATURE = 1.6
AGREES = (MARGINS > 0).astype(float)


def found(strategy: str = "filter_weight", **select: object):
    return constants(SelectConfig(**select), strategy, MARGINS, temperature=TEMPERATURE)


def decision(constants_, *, calibrate: bool):
    scale = TEMPERATURE if calibrate else 1.0
    view = PairView(MARGINS / scale, np.zeros(len(MARGINS)), expit(MARGINS / scale), np.zeros(len(MARGINS)))
    numbers = {
        "agreement_threshold": constants_.agreement_threshold,
        "weight_temperature": constants_.weight_temperature,
    }
    return STRATEGIES["filter_weight"](view, SelectConfig().model_copy(update=numbers))


def test_auto_is_the_rule_on_calibrated_margins():
    calibrated = np.abs(MARGINS) / TEMPERATURE
    one = found(agreement_threshold="auto", weight_temperature="auto", calibrate=True, auto_information=0.8)
    assert (one.agreement_threshold, one.weight_temperature) == pytest.approx(
        automatic(calibrated, least_information=0.8, agrees=AGREES)
    )
    assert one.margin_temperature == TEMPERATURE
    assert one.bias == pytest.approx(0, abs=1e-6) and one.information >= 0.8


def test_without_calibration_auto_selects_the_same_pairs_with_the_same_weights():
    raw = found(agreement_threshold="auto", weight_temperature="auto")
    calibrated = found(agreement_threshold="auto", weight_temperature="auto", calibrate=True)
    assert raw.margin_temperature == 1 and raw.weight_temperature != calibrated.weight_temperature
    one, other = decision(raw, calibrate=False), decision(calibrated, calibrate=True)
    assert 0 < one.kept.sum() < len(one.kept)
    assert np.array_equal(one.kept, other.kept) and one.weight == pytest.approx(other.weight)
    assert (raw.bias, raw.information) == pytest.approx((calibrated.bias, calibrated.information))


@pytest.mark.parametrize("calibrate", [False, True])
def test_beta_alone_follows_the_tau_that_is_given(calibrate):
    one = found(agreement_threshold=0.8, weight_temperature="auto", calibrate=calibrate)
    assert one.agreement_threshold == 0.8
    unit = 1.0 if calibrate else TEMPERATURE
    tau = float(expit(math.log(0.8 / 0.2) / unit))
    expected = unbiased_temperature(np.abs(MARGINS) / TEMPERATURE, threshold=tau, agrees=AGREES) * unit
    assert one.weight_temperature == pytest.approx(expected)
    assert one.bias == pytest.approx(0, abs=1e-6)


def test_tau_alone_keeps_the_beta_that_is_given():
    one = found(agreement_threshold="auto", weight_temperature=1.1)
    both = found(agreement_threshold="auto", weight_temperature="auto")
    assert one.agreement_threshold == both.agreement_threshold and one.weight_temperature == 1.1
    assert one.bias > 0.05, "heavier weights than the unbiased ones would unlearn less"


@pytest.mark.parametrize(
    ("strategy", "tau", "beta"),
    [("filter_weight", 0.7, 1.1), ("filter", 0.7, INFINITE), ("weight", 1.0, 1.1), ("none", 1.0, INFINITE)],
)
def test_what_is_expected_is_of_the_strategy(strategy, tau, beta):
    one = constants(SelectConfig(calibrate=True), strategy, MARGINS, temperature=TEMPERATURE)
    calibrated = np.abs(MARGINS) / TEMPERATURE
    assert (one.agreement_threshold, one.weight_temperature) == (0.7, 1.1)
    assert one.bias == pytest.approx(bias(calibrated, threshold=tau, temperature=beta, agrees=AGREES), abs=1e-9)
    assert one.information == pytest.approx(information(calibrated, threshold=tau, temperature=beta))


def test_random_pairs_tell_by_their_number():
    """As many as the filter keeps, each like any other; a share of the data leaves that share."""
    kept = float((math.log(0.7 / 0.3) > MARGINS).mean())
    assert found("random").information == pytest.approx(kept) and found("random").bias == 0
    assert found("none").used_by("none", training_share=0.25)["information"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("strategy", "tau", "beta"),
    [
        ("filter_weight", 0.7, 1.1),
        ("filter", 0.7, None),
        ("weight", None, 1.1),
        ("none", None, None),
        ("random", 0.7, None),
    ],
)
def test_only_numbers_that_a_strategy_uses_are_stated(strategy, tau, beta):
    stated = found(strategy).used_by(strategy)
    assert (stated["agreement_threshold"], stated["weight_temperature"]) == (tau, beta)
    assert found("uncertainty").used_by("uncertainty")["bias"] is None, "what is not known is not stated either"


def test_nothing_is_foretold_of_controls_that_are_neither_filter_nor_weights():
    for strategy in ("uncertainty", "keep_fraction", "inverse_weight"):
        assert math.isnan(found(strategy).bias) and math.isnan(found(strategy).information)


@pytest.mark.parametrize(
    "select", [{"agreement_threshold": "auto"}, {"weight_temperature": "auto"}, {"calibrate": True}]
)
def test_what_needs_the_temperature_is_refused_without_it(select):
    with pytest.raises(DataError, match="the majority's validation pairs do not tell: there are none"):
        constants(SelectConfig(**select), "filter_weight", MARGINS, temperature=float("nan"))


def test_numbers_need_no_temperature():
    one = constants(SelectConfig(), "filter_weight", MARGINS, temperature=float("nan"))
    assert (one.agreement_threshold, one.weight_temperature, one.margin_temperature) == (0.7, 1.1, 1.0)
    assert math.isnan(one.bias) and math.isnan(one.information)


def test_the_temperature_recovers_the_one_that_labels_were_drawn_with():
    rng = np.random.default_rng(1)
    margins = rng.normal(size=50_000)
    chosen_first = rng.random(len(margins)) < expit(margins / 0.6)
    assert global_temperature(np.where(chosen_first, margins, -margins)) == pytest.approx(0.6, rel=0.05)


@pytest.mark.parametrize("margins", [[1.0, 2.0, 0.5], [-1.0, -0.1], []], ids=["all right", "all wrong", "none"])
def test_margins_that_determine_no_temperature(margins):
    assert math.isnan(global_temperature(np.array(margins)))
