"""The report's figures as Vega-Lite charts: drawn to SVG for the page and to PNG for papers, by the same code.

Shapes, fills and labels carry what colour carries, so that a figure can be read in grey and on paper.
"""

import math
from collections.abc import Mapping, Sequence

import altair as alt
import vl_convert

from scpo_ray.core.bootstrap import Estimate
from scpo_ray.reporting.numbers import has_interval
from scpo_ray.reporting.results import ModelResult, strategy_label

_INK, _SOFT, _LINE, _MARK = "#1b1d1f", "#5b6066", "#d9dcdf", "#1c5d99"
_FONT = "Arial, Liberation Sans, Helvetica, sans-serif"  # what the widths are measured with
_WIDTH = 720
_SHAPES = [
    "circle",
    "square",
    "cross",
    "diamond",
    "triangle-up",
    "triangle-down",
    "triangle-right",
    "triangle-left",
    "M-1,-1L1,1L1,-1L-1,1Z",  # a bow tie
    "M0,-1.2L0.35,-0.35L1.2,0L0.35,0.35L0,1.2L-0.35,0.35L-1.2,0L-0.35,-0.35Z",  # a star
]


def to_svg(chart: alt.TopLevelMixin) -> str:
    """The chart as an SVG element; nothing is loaded from elsewhere."""
    return vl_convert.vegalite_to_svg(_themed(chart))


def to_png(chart: alt.TopLevelMixin, *, scale: float = 2.0) -> bytes:
    """The chart as a PNG, at twice the page's size for print."""
    return vl_convert.vegalite_to_png(_themed(chart), scale=scale)


def gains(results: Sequence[ModelResult]) -> alt.TopLevelMixin:
    """Overall and majority gain of every community's model over the global one, with intervals."""
    rows = [
        _interval(result.of(metric), community=result.community, panel=panel, scale=100)
        | {
            "clear": "interval leaves zero out"
            if _leaves_zero_out(result.of(metric))
            else "interval spans zero, or none"
        }
        for result in results
        for metric, panel in (("overall_gain", "On its own pairs"), ("majority_gain", "On the majority's pairs"))
        if result.of(metric).num_pairs
    ]
    communities = list(dict.fromkeys(result.community for result in results))
    y = alt.Y("community:N", sort=communities, title=None, axis=alt.Axis(labelLimit=220))
    base = alt.Chart(alt.Data(values=rows))
    zero = base.mark_rule(color=_INK, strokeWidth=1).encode(x=alt.datum(0))
    lines = base.mark_rule(strokeWidth=2, color=_MARK).encode(
        y=y, x=alt.X("low:Q", title="Points of accuracy"), x2="high:Q"
    )
    dots = base.mark_point(size=70, color=_MARK, strokeWidth=2, opacity=1).encode(
        y=y,
        x="value:Q",
        fill=alt.Fill(
            "clear:N",
            scale=alt.Scale(
                domain=["interval leaves zero out", "interval spans zero, or none"], range=[_MARK, "white"]
            ),
            legend=alt.Legend(title=None, orient="bottom", direction="vertical", symbolOpacity=1),
        ),
    )
    return (
        alt.layer(zero, lines, dots)
        .properties(width=_WIDTH // 2 - 20, height=alt.Step(26))
        .facet(column=alt.Column("panel:N", title=None, sort=["On its own pairs", "On the majority's pairs"]))
    )


def distances(rows: Sequence[Mapping], planted: Mapping[str, float]) -> alt.TopLevelMixin:
    """How far communities are from the majority. Args: rows: community, value, low, high (shares); planted: the truth."""
    values = [
        {"community": row["community"]}
        | {key: None if math.isnan(row[key]) else 100 * row[key] for key in ("value", "low", "high")}
        | {"planted": 100 * planted[row["community"]] if row["community"] in planted else None}
        for row in rows
    ]
    base = alt.Chart(alt.Data(values=values))
    y = alt.Y("community:N", sort=[row["community"] for row in rows], title=None, axis=alt.Axis(labelLimit=220))
    layers = [
        base.mark_rule(color=_INK, strokeWidth=1).encode(x=alt.datum(0)),
        base.mark_rule(strokeWidth=2, color=_MARK).encode(
            y=y, x=alt.X("low:Q", title="Points of accuracy"), x2="high:Q"
        ),
        base.mark_point(size=70, filled=True, color=_MARK, opacity=1).encode(y=y, x="value:Q"),
    ]
    if planted:
        layers.append(base.mark_tick(thickness=3, size=18, color=_INK).encode(y=y, x="planted:Q"))
    return alt.layer(*layers).properties(width=_WIDTH - 200, height=alt.Step(26))


def frontier(results: Sequence[ModelResult], strategies: Sequence[str]) -> alt.TopLevelMixin:
    """Acquisition against retention: every arm of every community, and the arms' means over communities."""
    rows = [
        {
            "community": result.community,
            "arm": result.label,
            "acquisition": 100 * result.of("acquisition").value,
            "retention": 100 * result.of("retention").value,
        }
        for result in results
        if result.of("acquisition").num_pairs and result.of("retention").num_pairs
    ]
    labels = [strategy_label(strategy) for strategy in strategies]
    legend = alt.Legend(title=None, orient="right", symbolSize=110, symbolOpacity=1)
    shape = alt.Shape("arm:N", scale=alt.Scale(domain=labels, range=_SHAPES[: len(labels)]), legend=legend)
    color = alt.Color("arm:N", scale=alt.Scale(domain=labels, scheme="tableau10"), legend=legend)
    x = alt.X("retention:Q", title="Retention, %", scale=alt.Scale(zero=False))
    y = alt.Y("acquisition:Q", title="Acquisition, %", scale=alt.Scale(zero=False))
    base = alt.Chart(alt.Data(values=rows))
    single = base.mark_point(size=30, opacity=0.3).encode(x=x, y=y, shape=shape, color=color)
    mean = base.mark_point(size=210, filled=True, opacity=1, stroke=_INK, strokeWidth=1).encode(
        x=alt.X("mean(retention):Q", title="Retention, %"),
        y=alt.Y("mean(acquisition):Q", title="Acquisition, %"),
        shape=shape,
        color=color,
    )
    return alt.layer(single, mean).properties(width=_WIDTH - 180, height=400)


def curve(
    rows: Sequence[Mapping], *, x_title: str, x_format: str = "~g", log_x: bool = False, marked: float | None = None
) -> alt.TopLevelMixin:
    """Lines with intervals. Args: rows: x, line, value, low, high (accuracies in [0, 1]); marked: an x worth a rule."""
    values = [
        {"x": row["x"], "line": row["line"]}
        | {key: None if math.isnan(row[key]) else 100 * row[key] for key in ("value", "low", "high")}
        for row in rows
    ]
    base = alt.Chart(alt.Data(values=values))
    scale = alt.Scale(type="log" if log_x else "linear", zero=False, nice=False, padding=14)
    x = alt.X("x:Q", title=x_title, scale=scale, axis=alt.Axis(format=x_format, labelOverlap=True))
    lines = list(dict.fromkeys(row["line"] for row in rows))
    color = alt.Color("line:N", scale=alt.Scale(domain=lines, scheme="viridis"), legend=alt.Legend(title=None))
    dash = alt.StrokeDash("line:N", scale=alt.Scale(domain=lines), legend=alt.Legend(title=None))
    y = alt.Y("value:Q", title="Accuracy, %", scale=alt.Scale(zero=False))
    layers = [
        base.mark_rule(strokeWidth=1.4, opacity=0.6).encode(
            x=x, y=alt.Y("low:Q", title="Accuracy, %"), y2="high:Q", color=color
        ),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=color, strokeDash=dash),
        base.mark_point(size=55, filled=True, opacity=1).encode(
            x=x,
            y=y,
            color=color,
            shape=alt.Shape("line:N", scale=alt.Scale(domain=lines), legend=alt.Legend(title=None)),
        ),
    ]
    if marked is not None:
        layers.insert(0, base.mark_rule(color=_SOFT, strokeDash=[3, 3]).encode(x=alt.datum(marked)))
    return alt.layer(*layers).properties(width=_WIDTH - 200, height=280)


def heat_map(
    rows: Sequence[Mapping], *, x_title: str | None, y_title: str | None, x_order: Sequence[str], y_order: Sequence[str]
) -> alt.TopLevelMixin:
    """A matrix with its numbers written in. Args: rows: x, y, value in [0, 1] or NaN (an empty cell)."""
    values = [
        {"x": row["x"], "y": row["y"], "value": 100 * row["value"], "text": f"{100 * row['value']:.0f}"}
        for row in rows
        if not math.isnan(row["value"])
    ]
    middle = sum(row["value"] for row in values) / max(len(values), 1)
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("x:N", title=x_title, sort=list(x_order), axis=alt.Axis(labelAngle=-40, labelLimit=140)),
        y=alt.Y("y:N", title=y_title, sort=list(y_order), axis=alt.Axis(labelLimit=200)),
    )
    cells = base.mark_rect(stroke="white").encode(
        color=alt.Color("value:Q", scale=alt.Scale(scheme="blues"), legend=alt.Legend(title="%"))
    )
    text = base.mark_text(fontSize=11).encode(
        text="text:N", color=alt.condition(f"datum.value > {middle + 8}", alt.value("white"), alt.value(_INK))
    )
    return alt.layer(cells, text).properties(width=alt.Step(38), height=alt.Step(26))


def calibration(rows: Sequence[Mapping]) -> alt.TopLevelMixin:
    """Accuracy against confidence. Args: rows: community, model, confidence, accuracy, num_pairs."""
    base = alt.Chart(alt.Data(values=[dict(row) for row in rows]))
    x = alt.X("confidence:Q", title="Confidence in its own choice", scale=alt.Scale(domain=[0.5, 1]))
    y = alt.Y("accuracy:Q", title="How often it is the annotators'", scale=alt.Scale(domain=[0, 1]))
    models = list(dict.fromkeys(row["model"] for row in rows))
    color = alt.Color("model:N", scale=alt.Scale(domain=models, range=[_SOFT, _MARK]), legend=alt.Legend(title=None))
    diagonal = base.mark_line(color=_LINE, strokeWidth=1.5).encode(
        x=alt.X("confidence:Q"), y=alt.Y("confidence:Q", title="How often it is the annotators'")
    )
    points = base.mark_point(filled=True, opacity=0.9, size=60).encode(
        x=x,
        y=y,
        color=color,
        shape=alt.Shape("model:N", scale=alt.Scale(domain=models), legend=alt.Legend(title=None)),
    )
    lines = base.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=color)
    return (
        alt.layer(diagonal, lines, points)
        .properties(width=190, height=190)
        .facet(facet=alt.Facet("community:N", title=None), columns=3)
    )


def by_community(rows: Sequence[Mapping], *, x_title: str, marks_zero: bool = False) -> alt.TopLevelMixin:
    """Estimates with intervals, one panel for each community. Args: rows: community, arm (label), value, low, high."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    values = [
        {"community": row["community"], "arm": row["arm"]}
        | {key: None if math.isnan(row[key]) else row[key] for key in ("value", "low", "high")}
        for row in rows
    ]
    base = alt.Chart(alt.Data(values=values))
    y = alt.Y("arm:N", sort=arms, title=None, axis=alt.Axis(labelLimit=170))
    lines = base.mark_rule(strokeWidth=2, color=_MARK).encode(
        y=y, x=alt.X("low:Q", title=x_title, scale=alt.Scale(zero=False)), x2="high:Q"
    )
    dots = base.mark_point(size=50, filled=True, color=_MARK).encode(y=y, x="value:Q")
    zero = [base.mark_rule(color=_INK, strokeWidth=1).encode(x=alt.datum(0))] if marks_zero else []
    return (
        alt.layer(*zero, lines, dots)
        .properties(width=190, height=alt.Step(17))
        .facet(facet=alt.Facet("community:N", title=None), columns=3)
    )


def _interval(estimate: Estimate, *, community: str, panel: str, scale: float) -> dict:
    known = has_interval(estimate)
    return {
        "community": community,
        "panel": panel,
        "value": scale * estimate.value,
        "low": scale * estimate.low if known else None,
        "high": scale * estimate.high if known else None,
    }


def _leaves_zero_out(estimate: Estimate) -> bool:
    return has_interval(estimate) and (estimate.low > 0 or estimate.high < 0)


def _themed(chart: alt.TopLevelMixin) -> dict:
    specification = chart.to_dict()
    specification["config"] = {
        "background": "white",
        "font": _FONT,
        "view": {"stroke": None},
        "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": _LINE},
        "axisY": {"grid": False},
        "header": {"labelFontSize": 13, "labelFontWeight": 600},
        "legend": {"labelFontSize": 12, "labelLimit": 260},
        "facet": {"spacing": 24},
    }
    return specification
