"""Figures of a search: every trial across its settings, the front, two settings against each other, what mattered."""

import math
from collections.abc import Mapping, Sequence

import altair as alt

_INK, _SOFT, _MARK = "#1b1d1f", "#5b6066", "#1c5d99"
_WIDTH, _HEIGHT = 620, 280


def parallel_coordinates(
    points: Sequence[Mapping[str, object]], values: Sequence[float], *, chosen: int, title: str
) -> alt.TopLevelMixin:
    """A line per trial through its settings to its objective; the chosen one is thick.

    Args:
        points: setting -> value, the same settings in each.
        values: the objective, in the order of `points`.
        chosen: index of the chosen trial.
        title: of the objective.
    """
    axes = {name: [point[name] for point in points] for name in points[0]} | {title: list(values)}
    scales = {name: _Scale(found) for name, found in axes.items()}
    rows = [
        {
            "trial": index,
            "axis": name,
            "at": scales[name](found[index]),
            "value": values[index],
            "chosen": index == chosen,
        }
        for name, found in axes.items()
        for index in range(len(points))
    ]
    ends = [
        {"axis": name, "at": at, "text": text}
        for name, scale in scales.items()
        for at, text in zip((0.0, 1.0), (scale.low_text, scale.high_text), strict=True)
    ]
    x = alt.X(
        "axis:N", sort=list(axes), title=None, axis=alt.Axis(labelAngle=0, labelLimit=150, grid=True, domain=False)
    )
    y = alt.Y("at:Q", axis=None, scale=alt.Scale(domain=[-0.08, 1.08]))
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(size=28))
        .encode(
            x=x,
            y=y,
            detail="trial:N",
            color=alt.Color("value:Q", title=title, scale=alt.Scale(scheme="viridis", reverse=True)),
            strokeWidth=alt.condition("datum.chosen", alt.value(4), alt.value(1)),
            opacity=alt.condition("datum.chosen", alt.value(1), alt.value(0.6)),
        )
    )
    labels = (
        alt.Chart(alt.Data(values=ends))
        .mark_text(align="left", dx=6, fontSize=11, color=_SOFT)
        .encode(x=x, y=y, text="text:N")
    )
    return alt.layer(lines, labels).properties(width=_WIDTH, height=_HEIGHT)


def front(rows: Sequence[Mapping], *, x_title: str, y_title: str) -> alt.TopLevelMixin:
    """Two objectives of every trial. Args: rows: x, y, kind (what the mark means, e.g. `on the front`)."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    shapes = ["circle", "diamond", "square", "triangle-up", "cross"][: len(kinds)]
    return (
        alt.Chart(alt.Data(values=[dict(row) for row in rows]))
        .mark_point(size=90, filled=True, opacity=0.9)
        .encode(
            x=alt.X("x:Q", title=f"{x_title}, %", scale=alt.Scale(zero=False, padding=12)),
            y=alt.Y("y:Q", title=f"{y_title}, %", scale=alt.Scale(zero=False, padding=12)),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=shapes), legend=alt.Legend(title=None)),
            color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, scheme="tableau10"), legend=alt.Legend(title=None)),
        )
        .properties(width=_WIDTH - 160, height=_HEIGHT)
    )


def progress(values: Sequence[float], *, title: str) -> alt.TopLevelMixin:
    """The objective of trial after trial, and the best so far. Args: values: percent, NaN where a trial failed."""
    best, rows = -math.inf, []
    for number, value in enumerate(values, 1):
        best = best if math.isnan(value) else max(best, value)
        rows.append({"trial": number, "value": None if math.isnan(value) else value})
        rows[-1]["best"] = best if math.isfinite(best) else None
    base = alt.Chart(alt.Data(values=rows))
    x = alt.X("trial:Q", title="Trial", axis=alt.Axis(tickMinStep=1, format="d"))
    y = alt.Y("value:Q", title=f"{title}, %", scale=alt.Scale(zero=False))
    dots = base.mark_point(size=60, filled=True, color=_MARK, opacity=0.9).encode(x=x, y=y)
    line = base.mark_line(interpolate="step-after", color=_INK, strokeWidth=1.5).encode(
        x=x, y=alt.Y("best:Q", title=f"{title}, %")
    )
    return alt.layer(line, dots).properties(width=_WIDTH - 160, height=_HEIGHT - 60)


def plane(rows: Sequence[Mapping], *, x_title: str, y_title: str, title: str, log_y: bool) -> alt.TopLevelMixin:
    """The objective over two settings: a mark per trial, its number beside it. Args: rows: x, y, value (percent), kind."""
    base = alt.Chart(alt.Data(values=[dict(row) | {"text": f"{row['value']:.1f}"} for row in rows]))
    x = alt.X("x:Q", title=x_title, scale=alt.Scale(zero=False, padding=20))
    y = alt.Y("y:Q", title=y_title, scale=alt.Scale(type="log" if log_y else "linear", zero=False, padding=20))
    marks = base.mark_square(size=420, opacity=1).encode(
        x=x,
        y=y,
        color=alt.Color("value:Q", title=f"{title}, %", scale=alt.Scale(scheme="blues", zero=False)),
        stroke=alt.condition("datum.kind == 'chosen'", alt.value(_INK), alt.value("white")),
        strokeWidth=alt.condition("datum.kind == 'chosen'", alt.value(3), alt.value(1)),
    )
    texts = base.mark_text(fontSize=10, dy=19, color=_INK).encode(x=x, y=y, text="text:N")
    return alt.layer(marks, texts).properties(width=_WIDTH - 140, height=_HEIGHT + 60)


def importance(shares: Mapping[str, float]) -> alt.TopLevelMixin:
    """How much of the objective's variance each setting explains."""
    rows = [{"setting": name, "share": 100 * share} for name, share in shares.items()]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=_MARK, size=16)
        .encode(
            y=alt.Y("setting:N", sort=list(shares), title=None, axis=alt.Axis(labelLimit=260)),
            x=alt.X("share:Q", title="Share of the variance over trials, %", scale=alt.Scale(domain=[0, 100])),
        )
        .properties(width=_WIDTH - 240, height=alt.Step(26))
    )


class _Scale:
    """From a setting's values to [0, 1]: by size where they are numbers (by logarithm over two decades), else by order."""

    def __init__(self, values: Sequence[object]) -> None:
        numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        self._names = [] if len(numbers) == len(values) else sorted({str(value) for value in values})
        if self._names:
            self._low, self._high, self._is_log = 0.0, float(max(len(self._names) - 1, 1)), False
            self.low_text, self.high_text = self._names[0], self._names[-1]
            return
        low, high = min(numbers), max(numbers)
        self._is_log = low > 0 and high / low > 50
        self._low, self._high = (math.log(low), math.log(high)) if self._is_log else (low, high)
        self.low_text, self.high_text = f"{low:.4g}", f"{high:.4g}"

    def __call__(self, value: object) -> float:
        if self._names:
            at = float(self._names.index(str(value)))
        else:
            assert isinstance(value, int | float)
            at = math.log(value) if self._is_log else float(value)
        return 0.5 if self._high == self._low else (at - self._low) / (self._high - self._low)
