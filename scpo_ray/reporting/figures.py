"""Inline SVG: dots with intervals, in panels that share one scale; readable in grey, in the dark, and on paper."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from scpo_ray.core.accuracy import Estimate
from scpo_ray.reporting.numbers import has_interval, percent, percent_interval, points, points_interval

_WIDTH, _LABELS, _GAP, _VALUES = 960, 190, 26, 52
_TOP, _ROW, _BOTTOM = 34, 24, 30
_LONGEST_LABEL = 27


@dataclass(frozen=True)
class PlotRow:
    """One line of a plot: an estimate per panel, or none under a group's name."""

    label: str
    estimates: tuple[Estimate, ...] = ()


def interval_plot(
    rows: Sequence[PlotRow], *, panels: Sequence[str], scale: Literal["gain", "accuracy"], description: str
) -> Markup:
    """A dot and a line per estimate, one panel per column.

    gain: percentage points around a line at zero; the dot is filled where the interval leaves zero out, hollow where
    it does not. accuracy: 0 to 100%. An estimate without interval is a dot alone.
    """
    low, high = _domain(rows) if scale == "gain" else (0.0, 1.0)
    ticks = _ticks(low, high) if scale == "gain" else [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    height = _TOP + _ROW * len(rows) + _BOTTOM
    width = (_WIDTH - _LABELS - _GAP * len(panels)) / len(panels) - _VALUES
    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" class="plot"><title>{}</title>').format(_WIDTH, height, description)
    ]
    for index, row in enumerate(rows):
        parts.append(_label(row, _TOP + _ROW * (index + 0.5)))
    for number, name in enumerate(panels):
        left = _LABELS + _GAP + number * (width + _VALUES + _GAP)
        axis = _Axis(left, width, low, high, scale)
        parts.append(Markup('<text x="{:.1f}" y="16" class="panel">{}</text>').format(left, name))
        parts += _grid(axis, ticks, height)
        parts += [
            _mark(axis, row.estimates[number], _TOP + _ROW * (index + 0.5), f"{row.label}, {name}")
            for index, row in enumerate(rows)
            if row.estimates
        ]
    return Markup("").join([*parts, Markup("</svg>")])


@dataclass(frozen=True)
class _Axis:
    left: float
    width: float
    low: float
    high: float
    scale: Literal["gain", "accuracy"]

    def x(self, value: float) -> float:
        return self.left + self.width * (value - self.low) / (self.high - self.low)

    def tick(self, value: float) -> str:
        return _trimmed(points(value)) if self.scale == "gain" else f"{100 * value:.0f}%"

    def words(self, estimate: Estimate) -> tuple[str, str]:
        if self.scale == "gain":
            return points(estimate.value), points_interval(estimate)
        return percent(estimate.value), percent_interval(estimate)


def _label(row: PlotRow, y: float) -> Markup:
    shown = row.label if len(row.label) <= _LONGEST_LABEL else row.label[: _LONGEST_LABEL - 1] + "…"
    kind = "label" if row.estimates else "label group"
    return Markup('<text x="{}" y="{:.1f}" class="{}"><title>{}</title>{}</text>').format(
        _LABELS if row.estimates else 0, y + 4, kind, row.label, shown
    )


def _grid(axis: _Axis, ticks: Sequence[float], height: int) -> Iterator[Markup]:
    for tick in ticks:
        x = axis.x(tick)
        kind = "zero" if tick == 0 and axis.scale == "gain" else "grid"
        yield Markup('<line x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}" class="{3}"/>').format(
            x, _TOP - 6, height - _BOTTOM + 4, kind
        )
        yield Markup('<text x="{:.1f}" y="{}" class="tick">{}</text>').format(x, height - _BOTTOM + 20, axis.tick(tick))


def _mark(axis: _Axis, estimate: Estimate, y: float, name: str) -> Markup:
    end = axis.left + axis.width + _VALUES
    if math.isnan(estimate.value):
        return Markup('<text x="{:.1f}" y="{:.1f}" class="value">—</text>').format(end, y + 4)
    value, interval = axis.words(estimate)
    line = Markup("")
    if has_interval(estimate):
        line = Markup('<line x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}" class="interval"/>').format(
            axis.x(estimate.low), axis.x(estimate.high), y=y
        )
    is_hollow = axis.scale == "gain" and not (estimate.low > 0 or estimate.high < 0)
    return Markup(
        '<g><title>{}: {} {}</title>{}<circle cx="{:.1f}" cy="{:.1f}" r="5" class="{}"/>'
        '<text x="{:.1f}" y="{:.1f}" class="value">{}</text></g>'
    ).format(
        name, value, interval, line, axis.x(estimate.value), y, "hollow" if is_hollow else "dot", end, y + 4, value
    )


def _domain(rows: Sequence[PlotRow]) -> tuple[float, float]:
    """The smallest range with every interval and zero in it, and a little air."""
    numbers = [n for row in rows for e in row.estimates for n in (e.value, e.low, e.high) if not math.isnan(n)]
    low, high = min([0.0, *numbers]), max([0.0, *numbers])
    air = 0.04 * (high - low) or 0.01
    return low - air if low < 0 else 0.0, high + air if high > 0 else 0.0 if low < 0 else air


def _ticks(low: float, high: float) -> list[float]:
    """Four to eleven round numbers in the range, zero among them."""
    rough = (high - low) / 10
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(step * number, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _trimmed(text: str) -> str:
    return text.removesuffix(".0")
