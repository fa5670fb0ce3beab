"""τ and β from the data, without training a model: the filter's bias, the weights that repay it, the information left.

Take a community that does not differ from the global model: its labels follow σ(m), m ≥ 0 the calibrated margin between a
pair's two responses. A right method moves no model there. SCPO keeps every label that disagrees, at weight exp(-m/β), and
one that agrees only where m < logit(τ). The gradient of the loss along the scale of the rewards is then in the mean

    bias(τ, β) = Σᵢ mᵢ σ(mᵢ) σ(-mᵢ) (1[mᵢ < logit τ] - exp(-mᵢ/β)) / Σᵢ mᵢ σ(mᵢ) σ(-mᵢ)

Above zero the rewards are sharpened, below it they are unlearned. The filter alone (β = ∞) always unlearns, the weights alone
(τ = 1) always sharpen, and for every τ above one half a single β does neither: `unbiased_temperature`. What is left to choose
is how much of what the pairs tell the filter may throw away: `information`.

Source: this project; docs/tuning.md has the derivation, its assumptions, and how it fares beside searched values.
"""

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import expit, logit

Array = np.ndarray

TEMPERATURE_BOUNDS = (1e-2, 1e3)
"""Where an unbiased β is looked for, calibrated reward units. At the upper end even the strongest disagreements weigh one."""

_THRESHOLDS = np.concatenate([np.arange(0.505, 0.99, 0.005), 1 - np.geomspace(0.01, 1e-4, 21)])
"""Candidates for τ, ascending."""
_MOST_MARGINS = 4096


def bias(margins: Float[Array, " pairs"], *, threshold: float, temperature: float) -> float:
    """How selection moves the scale of rewards that are right already; shares of full fine-tuning's pull, in [-1, 1].

    Args:
        margins: |r⁺ - r⁻| / T, calibrated; which response was chosen does not matter.
        threshold: τ, probability; 1 keeps every pair.
        temperature: β, calibrated reward units; infinite for weights of one.

    Returns:
        0: a community that does not differ is left alone. Below 0: its rewards are unlearned. NaN when every margin is 0.

    Raises:
        ValueError: a margin is negative or not finite, or a parameter is outside its range.
    """
    _check(margins, threshold, temperature)
    pull = margins * expit(margins) * expit(-margins)
    if not pull.sum():
        return float("nan")
    return float(pull @ (_agreeing(margins, threshold) - np.exp(-margins / temperature)) / pull.sum())


def unbiased_temperature(margins: Float[Array, " pairs"], *, threshold: float) -> float:
    """The β at which `bias` is zero: the weights give back what the filter took.

    Returns:
        β in calibrated reward units, within TEMPERATURE_BOUNDS (a bound where the root lies beyond it, so the lower one
        where no agreeing label with a margin above 0 is kept); infinite where the filter drops nothing.

    Raises:
        ValueError: as for `bias`.
    """
    _check(margins, threshold, 1.0)
    if _agreeing(margins, threshold)[margins > 0].all():
        return float("inf")

    def bias_at(log_temperature: float) -> float:
        return bias(margins, threshold=threshold, temperature=float(np.exp(log_temperature)))

    low, high = np.log(TEMPERATURE_BOUNDS)
    if bias_at(low) <= 0:
        return TEMPERATURE_BOUNDS[0]
    if bias_at(high) >= 0:
        return TEMPERATURE_BOUNDS[1]
    return float(np.exp(brentq(bias_at, low, high, xtol=1e-8)))


def information(margins: Float[Array, " pairs"], *, threshold: float, temperature: float) -> float:
    """The share of all pairs that would tell as much, were they all kept at weight one; relative efficiency.

    What is to be told apart are labels that follow σ(m) and those of a community whose preference is turned, σ(-m). With g
    the gradient along the scale, S = E[g | turned] - E[g | not] and V = Var[g | not], it is S²/V divided by its value at
    τ = 1, β = ∞.

    Args:
        margins: as for `bias`.
        threshold: τ, probability; 1 keeps every pair.
        temperature: β, calibrated reward units; infinite for weights of one.

    Returns:
        1 for full fine-tuning; it may exceed 1 where weights come nearer to the likelihood ratio. NaN when every margin is 0.

    Raises:
        ValueError: as for `bias`.

    Source: Pitman's asymptotic relative efficiency, for the score test of the scale.
    """
    _check(margins, threshold, temperature)
    everything = _signal_to_noise(margins, np.ones_like(margins), np.ones_like(margins))
    if not everything > 0:
        return float("nan")
    kept = _agreeing(margins, threshold)
    return _signal_to_noise(margins, kept, np.exp(-margins / temperature)) / everything


def automatic(margins: Float[Array, " pairs"], *, least_information: float) -> tuple[float, float]:
    """(τ, β): the lowest threshold that leaves `least_information`, with the weights that make it unbiased.

    Of more than 4,096 margins as many quantiles stand for all. Where no threshold leaves as much, the highest, which keeps
    practically every pair.

    Raises:
        ValueError: as for `bias`.
    """
    _check(margins, 0.5, 1.0)
    if len(margins) > _MOST_MARGINS:
        margins = np.quantile(margins, (np.arange(_MOST_MARGINS) + 0.5) / _MOST_MARGINS)
    threshold, temperature = float(_THRESHOLDS[-1]), float("inf")
    for threshold in _THRESHOLDS.tolist():
        temperature = unbiased_temperature(margins, threshold=threshold)
        if information(margins, threshold=threshold, temperature=temperature) >= least_information:
            break
    return threshold, temperature


def _agreeing(margins: Float[Array, " pairs"], threshold: float) -> Float[Array, " pairs"]:
    """1 where a label that agrees is kept."""
    return (margins < logit(threshold)).astype(np.float64)


def _signal_to_noise(
    margins: Float[Array, " pairs"], agreeing: Float[Array, " pairs"], disagreeing: Float[Array, " pairs"]
) -> float:
    """S²/V for weights of the labels that agree and of those that disagree."""
    right, wrong = expit(margins), expit(-margins)  # probabilities that a label of the global model agrees, disagrees
    up, down = agreeing * wrong, disagreeing * right  # the pull on the margin of either label
    mean, mean_turned = right * up - wrong * down, wrong * up - right * down
    variance = right * up**2 + wrong * down**2 - mean**2
    signal, noise = margins @ (mean - mean_turned), margins**2 @ variance
    return float(signal**2 / noise) if noise > 0 else 0.0


def _check(margins: Float[Array, " pairs"], threshold: float, temperature: float) -> None:
    if not (np.isfinite(margins) & (margins >= 0)).all():
        raise ValueError("margins must be finite and not negative")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
