"""Several objectives at once: which points no other beats, and which one of them is taken."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Array = np.ndarray
Criterion = Literal["mean", "first", "maximin"]


def pareto_mask(values: Float[Array, "points objectives"]) -> Bool[Array, " points"]:
    """True where no other point is at least as high in every objective and higher in one. Equal points stay together.

    Raises:
        ValueError: a value is not finite: it could neither beat nor be beaten.
    """
    if not np.isfinite(values).all():
        raise ValueError("objectives must be finite")
    as_high = (values[:, None, :] >= values[None, :, :]).all(axis=2)
    higher = (values[:, None, :] > values[None, :, :]).any(axis=2)
    return np.asarray(~(as_high & higher).any(axis=0), dtype=bool)


def choose(
    values: Float[Array, "points objectives"],
    *,
    criterion: Criterion,
    baseline: Float[Array, " objectives"] | None = None,
) -> int:
    """The index of the chosen point; it is on the front. Of equal ones the first.

    Args:
        criterion: mean: highest mean of the objectives; first: highest first objective, ties by the next; maximin: highest
            smallest gain over `baseline`, ties by the mean.
        baseline: the objectives of the settings as they were; for maximin.

    Raises:
        ValueError: there is no point, a value is not finite, or maximin has no baseline.
    """
    if not len(values):
        raise ValueError("no point to choose from")
    on_front = pareto_mask(values)
    if criterion == "maximin" and baseline is None:
        raise ValueError("maximin needs a baseline")
    means = values.mean(axis=1)
    if criterion == "mean":
        keys = means[:, None]
    elif criterion == "first":
        keys = values
    else:
        assert baseline is not None
        keys = np.column_stack([(values - baseline).min(axis=1), means])
    best: int = max(np.flatnonzero(on_front).tolist(), key=lambda index: (tuple(keys[index]), -index))
    return best
