"""How numbers are written, the same in the terminal, the summary and the page."""

import math

from scpo_ray.core.bootstrap import Estimate

NONE = "—"


def percent(share: float | None) -> str:
    """0.614 -> 61.4%; a dash where there is none."""
    return NONE if share is None or math.isnan(share) else f"{100 * share:.1f}%"


def points(share: float | None) -> str:
    """A difference of shares in percentage points, with its sign: -0.041 -> −4.1. Only zero itself has none."""
    if share is None or math.isnan(share):
        return NONE
    return "0.0" if share == 0 else f"{100 * share:+.1f}".replace("-", "−")


def plain(value: float | None) -> str:
    """-0.1234 -> −0.12; a dash where there is none."""
    return NONE if value is None or math.isnan(value) else f"{value:.2f}".replace("-", "−")


def significant(value: float | None) -> str:
    """Three significant digits: 0.70000 -> 0.7, 12.345 -> 12.3, infinity -> ∞; a dash where there is none."""
    if value is not None and math.isinf(value):
        return "∞"
    return NONE if value is None or math.isnan(value) else f"{value:.3g}".replace("-", "−")


def p_value(value: float | None) -> str:
    """0.0312 -> 0.031; a dash where there is none."""
    if value is None or math.isnan(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def has_interval(estimate: Estimate) -> bool:
    """Whether the bootstrap had at least two clusters."""
    return not (math.isnan(estimate.low) or math.isnan(estimate.high))


def percent_interval(estimate: Estimate, *, separator: str = ", ") -> str:
    """[58.0, 64.9], percent."""
    if not has_interval(estimate):
        return NONE
    return f"[{100 * estimate.low:.1f}{separator}{100 * estimate.high:.1f}]"


def points_interval(estimate: Estimate, *, separator: str = ", ") -> str:
    """[−0.4, +4.8], percentage points."""
    return f"[{points(estimate.low)}{separator}{points(estimate.high)}]" if has_interval(estimate) else NONE


def count(number: float | None) -> str:
    """12345 -> 12,345."""
    return NONE if number is None else f"{number:,.0f}"


def duration(seconds: float | None) -> str:
    """93.4 -> 1 min 33 s."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
