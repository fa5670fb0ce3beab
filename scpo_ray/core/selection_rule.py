"""τ and β from the data, without training a model: the filter's bias, the weights that repay it, the information left.

Let a_i be 1 where the community's label agrees with the global model and 0 where not, m_i ≥ 0 the calibrated margin between
the pair's two responses, and s the scale of the rewards at which full fine-tuning along that scale would come to rest,
Σ m (a - σ(s m)) = 0: one for a community that does not differ, less for one that does. There the pulls of all labels cancel.
SCPO keeps every label that disagrees, at weight exp(-m/β), and one that agrees only where m < logit(τ). What is left is

    bias(τ, β) = Σ m [a σ(-s m) 1[m < logit τ] - (1 - a) σ(s m) exp(-m/β)] / Σ m a σ(-s m)

Above zero the rewards are sharpened beyond what full fine-tuning makes of them, below it they are unlearned. The filter alone
(β = ∞) always unlearns, the weights alone (τ = 1) always sharpen, and between them lies a β that does neither:
`unbiased_temperature`. What is left to choose is how much of what the pairs tell the filter may throw away: `information`.

Source: this project; docs/tuning.md has the derivation, its assumptions, and how it fares beside searched values.
"""

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import expit, logit

Array = np.ndarray

TEMPERATURE_BOUNDS = (1e-2, 1e3)
"""Where an unbiased β is looked for, calibrated reward units. At the upper end even the strongest disagreements weigh one."""
SCALE_BOUND = 30.0
"""Where a resting scale is looked for, in those of calibrated rewards."""

_THRESHOLDS = np.concatenate([np.arange(0.505, 0.99, 0.005), 1 - np.geomspace(0.01, 1e-4, 21)])
"""Candidates for τ, ascending."""
_MOST_MARGINS = 4096


def resting_scale(margins: Float[Array, " pairs"], agrees: Float[Array, " pairs"]) -> float:
    """s at which full fine-tuning along the scale of the rewards comes to rest: the logistic regression of labels on margins.

    Args:
        margins: as for `bias`.
        agrees: as for `bias`.

    Returns:
        s within ±SCALE_BOUND; a bound where all labels agree, or all disagree.
    """

    def pull(scale: float) -> float:
        return float(margins @ (agrees - expit(scale * margins)))

    if pull(SCALE_BOUND) >= 0:
        return SCALE_BOUND
    if pull(-SCALE_BOUND) <= 0:
        return -SCALE_BOUND
    return float(brentq(pull, -SCALE_BOUND, SCALE_BOUND, xtol=1e-10))


def bias(
    margins: Float[Array, " pairs"],
    *,
    threshold: float,
    temperature: float,
    agrees: Float[Array, " pairs"] | None = None,
) -> float:
    """How selection moves the scale of rewards from where full fine-tuning would leave it; shares of that one's pull.

    Args:
        margins: |r⁺ - r⁻| / T, calibrated.
        threshold: τ, probability; 1 keeps every pair.
        temperature: β, calibrated reward units; infinite for weights of one.
        agrees: per pair 1 where the label agrees with the global model, 0 where not, or a probability of it; unset: σ(m), a
            community that does not differ.

    Returns:
        0: as full fine-tuning, which leaves a community that does not differ alone. Below 0: rewards are unlearned. NaN when
        every margin is 0.

    Raises:
        ValueError: a margin is negative or not finite, or a parameter is outside its range.
    """
    _check(margins, threshold, temperature)
    up, down = _pulls(margins, agrees)
    whole = (up.sum() + down.sum()) / 2  # both are equal, but where all labels are alike
    if not whole:
        return float("nan")
    moved = up @ _agreeing(margins, threshold) - down @ np.exp(-margins / temperature)
    return round(float(moved / whole), 9) + 0.0  # what is known of the resting scale; and no zero below zero


def unbiased_temperature(
    margins: Float[Array, " pairs"], *, threshold: float, agrees: Float[Array, " pairs"] | None = None
) -> float:
    """The β at which `bias` is zero: the weights give back what the filter took.

    Returns:
        β in calibrated reward units, within TEMPERATURE_BOUNDS (a bound where the root lies beyond it, so the lower one
        where no agreeing label with a margin above 0 is kept); infinite where the filter drops nothing.

    Raises:
        ValueError: as for `bias`.
    """
    _check(margins, threshold, 1.0)
    kept = _agreeing(margins, threshold)
    if kept[margins > 0].all():
        return float("inf")
    up, down = _pulls(margins, agrees)

    def bias_at(log_temperature: float) -> float:
        return float(up @ kept - down @ np.exp(-margins / np.exp(log_temperature)))

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


def automatic(
    margins: Float[Array, " pairs"], *, least_information: float, agrees: Float[Array, " pairs"] | None = None
) -> tuple[float, float]:
    """(τ, β): the lowest threshold that leaves `least_information`, with the weights that make it unbiased.

    Of more than 4,096 pairs, as many groups of similar margins stand for all. Where no threshold leaves as much, the highest,
    which keeps practically every pair.

    Raises:
        ValueError: as for `bias`.
    """
    _check(margins, 0.5, 1.0)
    agrees = expit(margins) if agrees is None else agrees
    if len(margins) > _MOST_MARGINS:
        margins, agrees = _grouped(margins, agrees)
    threshold, temperature = float(_THRESHOLDS[-1]), float("inf")
    for threshold in _THRESHOLDS.tolist():
        temperature = unbiased_temperature(margins, threshold=threshold, agrees=agrees)
        if information(margins, threshold=threshold, temperature=temperature) >= least_information:
            break
    return threshold, temperature


def _grouped(
    margins: Float[Array, " pairs"], agrees: Float[Array, " pairs"]
) -> tuple[Float[Array, " groups"], Float[Array, " groups"]]:
    """Means of margins and labels over groups of neighbours, all of practically the same size."""
    order = np.argsort(margins, kind="stable")
    starts = np.arange(_MOST_MARGINS) * len(margins) // _MOST_MARGINS
    sizes = np.diff(np.append(starts, len(margins)))
    return np.add.reduceat(margins[order], starts) / sizes, np.add.reduceat(agrees[order], starts) / sizes


def _pulls(
    margins: Float[Array, " pairs"], agrees: Float[Array, " pairs"] | None
) -> tuple[Float[Array, " pairs"], Float[Array, " pairs"]]:
    """How strongly labels pull the scale up and down where full fine-tuning rests."""
    if agrees is None:
        pull = margins * expit(margins) * expit(-margins)
        return pull, pull
    scale = resting_scale(margins, agrees)
    return margins * agrees * expit(-scale * margins), margins * (1 - agrees) * expit(scale * margins)


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
