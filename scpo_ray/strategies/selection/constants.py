"""The numbers that a community's pairs are selected with: as configured, or found from the data where they are `auto`."""

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logit

from scpo_ray.config import SelectConfig, SelectionStrategy
from scpo_ray.core import selection_rule
from scpo_ray.core.calibration import TEMPERATURE_BOUNDS, fit_temperature
from scpo_ray.errors import DataError

_USE_TAU = ("filter_weight", "filter", "random", "keep_fraction", "other_ruler")
_USE_BETA = ("filter_weight", "weight", "inverse_weight", "keep_fraction", "other_ruler")


@dataclass(frozen=True)
class Constants:
    """τ and β of one community, in the units that the strategies apply them in, and what they are expected to do."""

    agreement_threshold: float
    weight_temperature: float
    """Infinite: every weight is 1."""
    margin_temperature: float
    """Rewards are divided by this first; 1 without calibration."""
    bias: float
    """`core.selection_rule.bias` of the strategy with them; NaN where that, or the global model's temperature, is not
    known."""
    information: float
    """`core.selection_rule.information`; NaN likewise."""

    def used_by(self, strategy: SelectionStrategy, *, training_share: float = 1.0) -> dict[str, float | None]:
        """What there is to say of an arm: None for a number that its strategy does not use, or that is not known.

        Args:
            training_share: share of the pairs that the arm may use at all; information falls with it.
        """
        found = asdict(self) | {"information": self.information * training_share}
        unused = {"agreement_threshold": strategy not in _USE_TAU, "weight_temperature": strategy not in _USE_BETA}
        return {name: None if unused.get(name) or np.isnan(value) else float(value) for name, value in found.items()}


def global_temperature(majority_margins: Float[np.ndarray, " pairs"]) -> float:
    """The global model's temperature on the majority's validation pairs; NaN where they do not determine one."""
    temperature = fit_temperature(majority_margins)
    inside = TEMPERATURE_BOUNDS[0] * 1.01 < temperature < TEMPERATURE_BOUNDS[1] / 1.01
    return temperature if inside else float("nan")


def constants(
    config: SelectConfig, strategy: SelectionStrategy, margins: Float[np.ndarray, " pairs"], *, temperature: float
) -> Constants:
    """τ and β for one community.

    The rule works on calibrated margins. Without `calibrate` its answers are put into the units of raw rewards, where they
    select the same pairs with the same weights.

    Args:
        config: with the arm's threshold.
        strategy: the arm's.
        margins: r⁺ - r⁻ of the community's training pairs; their signs are the labels.
        temperature: `global_temperature`.

    Raises:
        DataError: the temperature is needed and not known.
    """
    threshold, weight_temperature = config.agreement_threshold, config.weight_temperature
    if np.isnan(temperature):
        if config.calibrate or threshold == "auto" or weight_temperature == "auto":
            raise DataError(
                "select: auto and calibrate need the temperature of the global model, which the majority's validation pairs "
                "do not tell: there are none, or it gets all of them right, or no more than half; raise "
                "prepare.validation_fraction, train the global model longer, or give numbers with calibrate false"
            )
        assert not isinstance(threshold, str) and not isinstance(weight_temperature, str)
        return Constants(threshold, weight_temperature, 1.0, float("nan"), float("nan"))
    unit = 1.0 if config.calibrate else temperature  # of calibrated margins, in those that the strategies see
    calibrated = np.abs(margins.astype(np.float64)) / temperature
    agrees = (1 + np.sign(margins.astype(np.float64))) / 2
    if threshold == "auto":
        tau, beta = selection_rule.automatic(calibrated, least_information=config.auto_information, agrees=agrees)
        threshold = float(expit(logit(tau) * unit))
    else:
        tau = float(expit(logit(threshold) / unit))
        beta = selection_rule.unbiased_temperature(calibrated, threshold=tau, agrees=agrees)
    if weight_temperature == "auto":
        weight_temperature = beta * unit
    beta = weight_temperature / unit
    bias, information = _expected(strategy, calibrated, agrees, tau, beta)
    if strategy == "random" and len(margins):  # as many pairs as the filter keeps, each alike
        information = float((margins < logit(threshold) * (temperature if config.calibrate else 1.0)).mean())
    return Constants(threshold, weight_temperature, temperature if config.calibrate else 1.0, bias, information)


def _expected(
    strategy: SelectionStrategy, margins: np.ndarray, agrees: np.ndarray, tau: float, beta: float
) -> tuple[float, float]:
    """(bias, information) of a strategy that is a filter, weights, both or neither."""
    if strategy in ("weight", "none", "random"):
        tau = 1.0
    if strategy in ("filter", "none", "random"):
        beta = float("inf")
    if strategy in ("inverse_weight", "uncertainty", "keep_fraction"):
        return float("nan"), float("nan")
    return (
        selection_rule.bias(margins, threshold=tau, temperature=beta, agrees=agrees),
        selection_rule.information(margins, threshold=tau, temperature=beta),
    )
