"""The scale of a community's rewards, from its validation pairs: so that different models' rewards can stand side by side."""

import numpy as np
import pyarrow as pa

from scpo_ray.core.calibration import fit_temperature
from scpo_ray.evaluation.pairs import PairSet

SCALES = pa.schema(
    [
        ("arm", pa.string()),
        ("community", pa.string()),
        ("mean", pa.float64()),  # of rewards over the responses of validation pairs, each counted once
        ("standard_deviation", pa.float64()),
        ("temperature", pa.float64()),  # reward units: margins divided by it are log-odds
        ("temperature_low", pa.float64()),  # 95%, clusters resampled; NaN with fewer than two
        ("temperature_high", pa.float64()),
        ("num_pairs", pa.int64()),
    ]
)


def scale_row(arm: str, validation: PairSet, scores: pa.Table, *, num_resamples: int, seed: int) -> dict[str, object]:
    """One model on its community's validation pairs; NaN where there are none, or all rewards are equal."""
    margins, (chosen, rejected) = validation.margins(scores), validation.rewards(scores)
    by_id = dict(zip(validation.table["chosen_id"].to_pylist(), chosen.tolist(), strict=True))
    by_id |= dict(zip(validation.table["rejected_id"].to_pylist(), rejected.tolist(), strict=True))
    rewards = np.array(list(by_id.values()), dtype=np.float64)
    has_spread = len(rewards) > 1 and rewards.std() > 0
    low, high = (
        _temperature_interval(margins, validation.cluster_codes, num_resamples=num_resamples, seed=seed)
        if has_spread
        else (float("nan"), float("nan"))
    )
    return {
        "arm": arm,
        "community": validation.name,
        "mean": float(rewards.mean()) if has_spread else float("nan"),
        "standard_deviation": float(rewards.std()) if has_spread else float("nan"),
        "temperature": fit_temperature(margins) if has_spread else float("nan"),
        "temperature_low": low,
        "temperature_high": high,
        "num_pairs": len(validation),
    }


def _temperature_interval(
    margins: np.ndarray, clusters: np.ndarray, *, num_resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of the fitted temperature over resamples of whole clusters; NaN with fewer than two."""
    codes = np.unique(clusters, return_inverse=True)[1]
    if not len(codes) or not codes.max():
        return float("nan"), float("nan")
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    generator = np.random.default_rng([seed, 11])
    start = fit_temperature(margins)
    fits = [
        fit_temperature(margins[np.concatenate([members[index] for index in drawn])], start=start)
        for drawn in generator.integers(len(members), size=(num_resamples, len(members)))
    ]
    low, high = np.quantile(fits, [0.025, 0.975])
    return float(low), float(high)
