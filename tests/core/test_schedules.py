"""Learning rates and step counts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.core.schedules import learning_rate, num_optimizer_steps


def _rates(schedule, *, num_steps=10, warmup_fraction=0.2, peak=1.0):
    return [
        learning_rate(step=step, num_steps=num_steps, peak=peak, warmup_fraction=warmup_fraction, schedule=schedule)
        for step in range(num_steps)
    ]


def test_schedules_by_hand():
    assert _rates("linear") == pytest.approx([0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    cosine = _rates("cosine")
    assert cosine[:3] == pytest.approx([0.5, 1, 1])
    assert cosine[6] == pytest.approx(0.5)
    assert cosine[4] == pytest.approx((1 + 2**-0.5) / 2)
    assert _rates("constant") == pytest.approx([0.5] + [1] * 9)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["linear", "cosine", "constant"]), st.integers(1, 200), st.floats(0, 1), st.floats(1e-6, 1))
def test_rates_rise_then_fall_and_are_never_zero(schedule, num_steps, warmup_fraction, peak):
    rates = _rates(schedule, num_steps=num_steps, warmup_fraction=warmup_fraction, peak=peak)
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(peak)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_after_the_last_step_would_be_zero(schedule):
    after = learning_rate(step=10, num_steps=10, peak=1.0, warmup_fraction=0.2, schedule=schedule)
    assert after == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "max_overrides", "steps"),
    [
        (1.0, None, False, 7),  # ceil(100 / 16)
        (2.0, None, False, 14),
        (0.5, None, False, 4),
        (2.0, 5, False, 5),
        (2.0, 50, False, 14),
        (2.0, 50, True, 50),
        (0.0, None, False, 0),
    ],
)
def test_num_optimizer_steps(epochs, max_steps, max_overrides, steps):
    found = num_optimizer_steps(
        num_items=100, batch_size=16, epochs=epochs, max_steps=max_steps, max_overrides=max_overrides
    )
    assert found == steps
