"""Learning rates and step counts as functions of the step: no state to save."""

import math
from typing import Literal


def learning_rate(
    *,
    step: int,
    num_steps: int,
    peak: float,
    warmup_fraction: float,
    schedule: Literal["linear", "cosine", "constant"],
) -> float:
    """The rate of optimiser step `step` (from 0) of `num_steps`.

    Rises linearly over the first ceil(warmup_fraction * num_steps) steps, never from zero, then decays so that the
    rate after the last step would be zero.
    """
    num_warmup = math.ceil(warmup_fraction * num_steps)
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(num_steps - num_warmup, 1)
    if schedule == "linear":
        return peak * (1 - progress)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak


def num_optimizer_steps(
    *, num_items: int, batch_size: int, epochs: float, max_steps: int | None, max_overrides: bool
) -> int:
    """Optimiser steps of a training: `epochs` passes in batches, capped by `max_steps`, or set by it (as published)."""
    if max_steps is not None and max_overrides:
        return max_steps
    steps = math.ceil(epochs * math.ceil(num_items / batch_size))
    return steps if max_steps is None else min(steps, max_steps)
