"""Figures of policies trained by PPO: what reward cost in KL, whether truth followed, who gained, how training went."""

import math
from collections.abc import Mapping, Sequence

import altair as alt

_INK, _SOFT, _MARK, _OTHER = "#1b1d1f", "#5b6066", "#1c5d99", "#c4601a"
_WIDTH = 620
_REST = "the rest"


def smoothed(values: Sequence[float]) -> list[float]:
    """Each value's mean with up to a twentieth of all on each side, two at least, and as many before as after.

    So the first and the last stay as they are, and a straight line stays straight.
    """
    widest, found = max(2, len(values) // 20), []
    for index in range(len(values)):
        reach = min(widest, index, len(values) - 1 - index)
        found.append(sum(values[index - reach : index + reach + 1]) / (2 * reach + 1))
    return found


def over_first(values: Sequence[float]) -> list[float]:
    """Values minus the mean of their first tenth, of one at least and five at most; NaN is not counted."""
    known = [value for value in values if math.isfinite(value)]
    first = known[: min(5, max(1, len(known) // 10))]
    return [value - sum(first) / len(first) for value in values] if first else list(values)


def reward_against_kl(rows: Sequence[Mapping], points: Sequence[Mapping]) -> alt.TopLevelMixin:
    """A panel per community, a line per policy through its steps.

    Args:
        rows: community, policy, step, kl, value.
        points: community, kl, value, text: best of n responses, which has no steps.
    """
    values = [{**row, "kind": "step"} for row in rows]
    ends = {(row["community"], row["policy"]): row for row in values}  # the last step of each line
    values += [row | {"kind": "end"} for row in ends.values()] + [{**point, "kind": "best"} for point in points]
    communities = list(dict.fromkeys(row["community"] for row in rows))
    base = alt.Chart(alt.Data(values=values))
    x = alt.X("kl:Q", title="KL, nats per response")
    y = alt.Y("value:Q", title="Reward, standard deviations", scale=alt.Scale(zero=False))
    color, dash = _by_policy(rows)
    of_kind = {kind: base.transform_filter(f"datum.kind == '{kind}'") for kind in ("step", "end", "best")}
    line = (
        of_kind["step"]
        .mark_line(strokeWidth=1.8, strokeJoin="round")
        .encode(x=x, y=y, color=color, strokeDash=dash, order="step:Q")
    )
    end = of_kind["end"].mark_point(size=60, filled=True, opacity=1).encode(x=x, y=y, color=color)
    best = of_kind["best"].mark_point(shape="diamond", size=70, color=_INK, strokeWidth=1.6, opacity=1)
    text = of_kind["best"].mark_text(align="left", dx=8, dy=4, fontSize=11, color=_INK)
    layers = [line, end, best.encode(x=x, y=y), text.encode(x=x, y=y, text="text:N")]
    return _panels(alt.layer(*layers), "community", communities)


def over_optimisation(rows: Sequence[Mapping], *, lines: tuple[str, str]) -> alt.TopLevelMixin:
    """Per policy, what it was trained on and what it should mean, against KL.

    Args:
        rows: policy, line, step, kl, value.
        lines: the names of what it was trained on and of what is beside it.
    """
    values = [dict(row) | {"is_end": False} for row in rows]
    ends = {(row["policy"], row["line"]): row for row in values}
    values += [row | {"is_end": True} for row in ends.values()]
    base = alt.Chart(alt.Data(values=values))
    legend = alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeWidth=2)
    color = alt.Color("line:N", scale=alt.Scale(domain=list(lines), range=[_MARK, _OTHER]), legend=legend)
    dash = alt.StrokeDash("line:N", scale=alt.Scale(domain=list(lines), range=[[1, 0], [6, 3]]), legend=legend)
    x = alt.X("kl:Q", title="KL, nats per response")
    y = alt.Y("value:Q", title="Gain over the first steps")
    zero = base.mark_rule(color=_SOFT, strokeWidth=1).encode(y=alt.datum(0))
    drawn = base.transform_filter("!datum.is_end").mark_line(strokeWidth=1.8, strokeJoin="round")
    end = (
        base.transform_filter("datum.is_end").mark_point(size=60, filled=True, opacity=1).encode(x=x, y=y, color=color)
    )
    layers = [zero, drawn.encode(x=x, y=y, color=color, strokeDash=dash, order="step:Q"), end]
    return _panels(alt.layer(*layers), "policy", list(dict.fromkeys(row["policy"] for row in rows)))


def steerability(rows: Sequence[Mapping], *, unit: str) -> alt.TopLevelMixin:
    """Policies by communities: gains with their numbers written in.

    Args:
        rows: policy, community, value, is_clear (its interval excludes zero: a star), is_own (trained towards it: a frame).
        unit: of the gains.
    """
    found = [dict(row) for row in rows if math.isfinite(row["value"])]
    for row in found:
        row["text"] = f"{row['value']:+.2f}".replace("-", "−") + ("*" if row["is_clear"] else "")
    largest = max((abs(row["value"]) for row in found), default=0) or 1.0
    policies, communities = (list(dict.fromkeys(row[key] for row in rows)) for key in ("policy", "community"))
    base = alt.Chart(alt.Data(values=found)).encode(
        x=alt.X("community:N", sort=communities, title="Judged by", axis=alt.Axis(labelAngle=-40, labelLimit=140)),
        y=alt.Y("policy:N", sort=policies, title="Policy", axis=alt.Axis(labelLimit=200)),
    )
    scale = alt.Scale(scheme="blueorange", reverse=True, domain=[-largest, largest])
    cells = base.mark_rect(stroke="white").encode(
        color=alt.Color("value:Q", scale=scale, legend=alt.Legend(title=unit))
    )
    frames = base.transform_filter("datum.is_own").mark_rect(fillOpacity=0, stroke=_INK, strokeWidth=2)
    strong = f"abs(datum.value) > {0.72 * largest}"
    texts = base.mark_text(fontSize=12).encode(
        text="text:N", color=alt.condition(strong, alt.value("white"), alt.value(_INK))
    )
    return alt.layer(cells, frames, texts).properties(width=alt.Step(66), height=alt.Step(32))


def through_training(rows: Sequence[Mapping], *, measures: Sequence[str]) -> alt.TopLevelMixin:
    """A small panel per measure, a line per policy. Args: rows: policy, measure, step, value; NaN leaves a gap."""
    values = [dict(row) | {"value": row["value"] if math.isfinite(row["value"]) else None} for row in rows]
    color, dash = _by_policy(rows)
    num_steps = max((row["step"] for row in rows), default=0)
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_line(strokeWidth=1.4, point=alt.OverlayMarkDef(size=22) if num_steps <= 12 else False)
        .encode(
            x=alt.X("step:Q", title="Step", axis=alt.Axis(tickCount=min(5, num_steps), format="d")),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
            color=color,
            strokeDash=dash,
        )
        .properties(width=_WIDTH // 2 - 40, height=140)
    )
    panels = chart.facet(facet=alt.Facet("measure:N", title=None, sort=list(measures)), columns=2)
    return panels.resolve_scale(y="independent").resolve_axis(x="independent")


def time_shares(shares: Mapping[str, Mapping[str, float]]) -> alt.TopLevelMixin:
    """Where each policy's time went. Args: shares: policy -> phase -> share; what is missing to one is `the rest`."""
    phases = [*dict.fromkeys(phase for parts in shares.values() for phase in parts), _REST]
    rows = []
    for policy, parts in shares.items():
        at = 0.0
        for order, (phase, share) in enumerate([*parts.items(), (_REST, max(0.0, 1 - sum(parts.values())))]):
            text = f"{100 * share:.0f}" if share >= 0.06 else ""
            rows.append({"policy": policy, "phase": phase, "share": 100 * share, "order": order, "text": text})
            rows[-1]["middle"] = 100 * (at + share / 2)
            at += share
    base = alt.Chart(alt.Data(values=rows))
    y = alt.Y("policy:N", sort=list(shares), title=None, axis=alt.Axis(labelLimit=200))
    scale = alt.Scale(domain=phases, range=["#9ecae1", "#fdd0a2", "#c7e9c0", "#dadaeb", "#eceff1"])
    legend = alt.Legend(title=None, orient="top", symbolStrokeColor=_SOFT)
    bars = base.mark_bar(size=20, stroke=_SOFT, strokeWidth=0.6).encode(
        y=y,
        x=alt.X("share:Q", title="Share of the time of its steps, %", stack="zero"),
        color=alt.Color("phase:N", scale=scale, legend=legend),
        order="order:Q",
    )
    texts = base.mark_text(fontSize=11, color=_INK).encode(y=y, x="middle:Q", text="text:N")
    return alt.layer(bars, texts).properties(width=_WIDTH - 120, height=alt.Step(32))


def _by_policy(rows: Sequence[Mapping]) -> tuple[alt.Color, alt.StrokeDash]:
    """Colour and dash say the same, for grey and for paper."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    legend = alt.Legend(title=None, orient="top", columns=5, symbolLimit=0, symbolType="stroke", symbolStrokeWidth=2)
    scheme = "tableau10" if len(policies) <= 10 else "tableau20"
    dashes = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4]]
    return (
        alt.Color("policy:N", scale=alt.Scale(domain=policies, scheme=scheme), legend=legend),
        alt.StrokeDash(
            "policy:N",
            scale=alt.Scale(domain=policies, range=[dashes[index % len(dashes)] for index in range(len(policies))]),
            legend=legend,
        ),
    )


def _panels(chart: alt.LayerChart, field: str, names: Sequence[str]) -> alt.TopLevelMixin:
    """One wide panel, or several side by side."""
    columns = min(3, len(names))
    sized = chart.properties(width=_WIDTH // columns - 30, height=260 if columns == 1 else 200)
    return sized.facet(facet=alt.Facet(f"{field}:N", title=None, sort=list(names)), columns=columns)
