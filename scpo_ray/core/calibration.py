"""Whether a reward margin means the probability that it claims: errors of calibration, and the temperature that mends it.

A pair's label has no side of its own: which response stands first is arbitrary. So a model's confidence in its own
choice, max(p, 1 - p) in [0.5, 1], is compared with how often that choice is the annotator's.
"""

import math
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import expit

Array = np.ndarray
_MAX_STEPS, _TOLERANCE = 100, 1e-10
TEMPERATURE_BOUNDS = (1e-2, 1e2)
"""Where a fitted temperature is looked for, reward units per unit; a fit at a bound means that the data has no inside optimum
(every pair right: lower; no better than chance: upper)."""


def calibration_curve(
    reward_margins: Float[Array, " pairs"],
    *,
    num_bins: int = 10,
    bins: Literal["width", "mass"] = "width",
) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, number of pairs) of every bin that has pairs, by confidence.

    Args:
        reward_margins: r⁺ - r⁻ of the annotator's choice; positive where the model chooses alike. A zero is half right.
        num_bins: bins over [0.5, 1].
        bins: of equal width, or of equal mass (as equal as ties of confidence allow).

    Raises:
        ValueError: a margin is not finite.
    """
    confidence, correct = _confidence(reward_margins)
    if not len(confidence):
        return []
    if bins == "width":
        codes = np.minimum(((confidence - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    else:
        edges = np.quantile(confidence, np.linspace(0, 1, num_bins + 1)[1:-1])
        codes = np.searchsorted(edges, confidence, side="right")
    return [
        (float(confidence[codes == code].mean()), float(correct[codes == code].mean()), int((codes == code).sum()))
        for code in np.unique(codes)
    ]


def expected_calibration_error(
    reward_margins: Float[Array, " pairs"],
    *,
    num_bins: int = 10,
    bins: Literal["width", "mass"] = "width",
) -> float:
    """Σ_b (n_b / N) |accuracy_b - confidence_b|, probability; with bins of equal mass it is the adaptive error.

    NaN without pairs.

    Source: Guo et al. (2017), ECE; Nixon et al. (2019), adaptive bins.
    """
    curve = calibration_curve(reward_margins, num_bins=num_bins, bins=bins)
    total = sum(size for _, _, size in curve)
    if not total:
        return float("nan")
    return sum(size * abs(accuracy - confidence) for confidence, accuracy, size in curve) / total


def fit_temperature(reward_margins: Float[Array, " pairs"], *, start: float = 1.0) -> float:
    """T > 0 that minimises -Σ log σ(margin / T): margins divided by it are log-odds that mean what they say.

    Newton's method on 1/T, in which the sum is convex, kept between what is known to be below and above.

    Args:
        reward_margins: r⁺ - r⁻ of the annotator's choice.
        start: a T to begin at.

    Returns:
        T in reward units, within TEMPERATURE_BOUNDS; NaN without pairs.

    Raises:
        ValueError: a margin is not finite.

    Source: Platt (1999) without offset; Guo et al. (2017).
    """
    _check_finite(reward_margins)
    if not len(reward_margins):
        return float("nan")
    margins = reward_margins.astype(np.float64)
    lowest, highest = 1 / TEMPERATURE_BOUNDS[1], 1 / TEMPERATURE_BOUNDS[0]
    low, high = lowest * (1 - _TOLERANCE), highest * (1 + _TOLERANCE)  # the bounds themselves are not looked at yet
    inverse = min(max(1 / start, lowest), highest)
    for _ in range(_MAX_STEPS):
        slope, curvature = _slopes(margins, inverse)
        if inverse == (lowest if slope > 0 else highest) or not slope:
            break
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = slope / curvature if curvature > 0 else math.copysign(math.inf, slope)
        following = min(max(inverse - step, lowest), highest)
        if not low < following < high:
            following = math.sqrt(low * high)
        if abs(following - inverse) <= _TOLERANCE * inverse:
            break
        inverse = following
    return 1 / inverse


def _slopes(margins: Float[Array, " pairs"], inverse: float) -> tuple[float, float]:
    """First and second derivative of -mean log σ(margin * inverse) by `inverse`."""
    wrong = expit(-margins * inverse)
    weighted = margins * wrong
    return -float(weighted.mean()), float((weighted * margins * (1 - wrong)).mean())


def _confidence(reward_margins: Float[Array, " pairs"]) -> tuple[Float[Array, " pairs"], Float[Array, " pairs"]]:
    _check_finite(reward_margins)
    margins = reward_margins.astype(np.float64)
    return expit(np.abs(margins)), np.where(margins == 0, 0.5, (margins > 0).astype(np.float64))


def _check_finite(reward_margins: Float[Array, " pairs"]) -> None:
    finite = np.isfinite(reward_margins)
    if not finite.all():
        raise ValueError(f"{int((~finite).sum())} of {len(finite)} reward margins are not finite")
