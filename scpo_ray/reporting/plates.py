"""Which figures a report has: each with a name for its file, a caption, and a chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt

from scpo_ray.core.bootstrap import Estimate
from scpo_ray.reporting import figures
from scpo_ray.reporting.evidence import CurvePoint, Evidence
from scpo_ray.reporting.results import ModelResult, strategy_label


@dataclass(frozen=True)
class Plate:
    """One figure."""

    name: str
    section: str
    caption: str
    chart: alt.TopLevelMixin


def plates(results: Sequence[ModelResult], evidence: Evidence, *, strategies: Sequence[str]) -> list[Plate]:
    """Every figure that the evidence allows, in the page's order."""
    main = [result for result in results if result.strategy == strategies[0]]
    label = strategy_label(strategies[0])
    found = []
    if main:
        caption = f"{label}: gain over the global model. Line: 95% interval."
        found.append(Plate("gains", "gains", caption, figures.gains(main)))
    if any(result.of("acquisition").num_pairs and result.of("retention").num_pairs for result in results):
        caption = (
            "What was acquired against what was retained. Small marks: communities; large ones: each arm's mean over "
            "them. Up and to the right is better; flipping predictions moves up and to the left."
        )
        found.append(Plate("frontier", "frontier", caption, figures.frontier(results, strategies)))
    found += _curves(evidence)
    found += _distances(evidence)
    found += _matrices(evidence, label)
    if evidence.calibration:
        caption = (
            "Confidence against accuracy in bins of equal mass, on test pairs; on the diagonal a reward margin means the "
            "probability that it claims. Models of the first seed."
        )
        found.append(Plate("calibration", "calibration", caption, figures.calibration(evidence.calibration)))
    if evidence.opinions:
        of_curves = {point.arm for point in evidence.curve} - set(strategies)
        rows = [
            {"community": row["community"], "arm": strategy_label(row["arm"])}
            | {"value": row["gain"], "low": row["gain_low"], "high": row["gain_high"]}
            for row in evidence.opinions
            if row["arm"] not in of_curves and row["gain"] is not None
        ]
        caption = (
            "By how much option probabilities are more similar to the community's answers (1 - Jensen-Shannon distance) "
            "than the global model's, on the same test questions. Line: 95% interval."
        )
        chart = figures.by_community(rows, x_title="Similarity gained", marks_zero=True)
        found.append(Plate("opinions", "opinions", caption, chart))
    return found


_METRICS = {"overall": "overall", "acquisition": "acquisition", "retention": "retention", "majority": "the majority"}


def _curves(evidence: Evidence) -> list[Plate]:
    found = []
    by_threshold = sorted(
        (point for point in evidence.curve if point.training_share == 1 and "none" not in point.arm),
        key=lambda point: point.threshold,
    )
    if len(by_threshold) > 1:
        rows = [
            {"x": point.threshold, "line": label, **_bounds(point.estimates[metric])}
            for point in by_threshold
            for metric, label in _METRICS.items()
            if metric in point.estimates
        ]
        caption = (
            f"Accuracy over all communities against the filter's threshold. Bars: 95% intervals.{_seeds(by_threshold)}"
        )
        found.append(Plate("tau", "curves", caption, figures.curve(rows, x_title="τ, the filter's threshold")))
    shares = [point for point in evidence.curve if _is_on_data_curve(point, evidence.curve)]
    if len({point.training_share for point in shares}) > 1:
        for name, title, x_format, x_of in (
            ("data", "Training pairs per community (mean)", ",.0f", lambda point: point.num_pairs),
            ("compute", "Training compute, FLOP", ".1e", lambda point: point.training_flops),
        ):
            rows = [
                {"x": x_of(point), "line": point.line, **_bounds(point.estimates["overall"])}
                for point in sorted(shares, key=x_of)
            ]
            caption = (
                f"Overall accuracy over all communities against {title[0].lower()}{title[1:]}. Bars: 95% intervals."
                f"{_seeds(shares)}"
            )
            found.append(
                Plate(name, "curves", caption, figures.curve(rows, x_title=title, x_format=x_format, log_x=True))
            )
    return found


def _seeds(points: Sequence[CurvePoint]) -> str:
    most = max(points, key=lambda point: point.num_seeds)
    if most.num_seeds == 1:
        return ""
    return (
        f" The arms of the tables are means over {most.num_seeds} seeds, the curve's other points one seed each; no bar "
        "holds the noise of seeds."
    )


def _is_on_data_curve(point: CurvePoint, curve: Sequence[CurvePoint]) -> bool:
    """Shares of the data, and the whole of it for the same strategies."""
    lines = {other.line for other in curve if other.training_share < 1}
    return point.line in lines and (point.training_share < 1 or "-tau-" not in point.arm)


def _bounds(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _distances(evidence: Evidence) -> list[Plate]:
    rows = sorted((row for row in evidence.distances if row["num_pairs"]), key=lambda row: -row["value"])
    if not rows:
        return []
    caption = (
        "Accuracy of the global model on the majority's test pairs minus that on the community's, percentage points. "
        "Line: 95% interval."
    )
    if evidence.planted_distances:
        caption += " Bar: the planted truth, what a perfect model of the majority would show."
    chart = figures.distances(rows, evidence.planted_distances)
    return [Plate("distances", "distances", caption, chart)]


def _matrices(evidence: Evidence, label: str) -> list[Plate]:
    found = []
    if len({row["community"] for row in evidence.transfer}) > 1:
        rows = [{"x": row["community"], "y": row["model"], "value": row["value"]} for row in evidence.transfer]
        models = list(dict.fromkeys(row["model"] for row in evidence.transfer))
        communities = [name for name in models if name != "global"]
        communities += sorted({row["community"] for row in evidence.transfer} - set(communities))
        chart = figures.heat_map(
            rows, x_title="Test pairs of", y_title="Model for", x_order=communities, y_order=models
        )
        caption = (
            f"{label}: accuracy of every community's model (of the first seed) on every community's test pairs, %."
        )
        found.append(Plate("transfer", "transfer", caption, chart))
    names: Sequence[str] = evidence.structure.get("communities", ())
    rows = _cells(evidence.structure, names) if names else []
    if any(row["value"] == row["value"] and row["x"] != row["y"] for row in rows):  # some pair is shared
        chart = figures.heat_map(rows, x_title=None, y_title=None, x_order=names, y_order=names)
        caption = (
            "Chance that a voter of one community and another voter of the other prefer the same response, %, over the "
            "pairs that both voted on. On the diagonal: two voters of one community; empty where nothing is shared."
        )
        found.append(Plate("agreement", "transfer", caption, chart))
    return found


def _cells(structure: Mapping, names: Sequence[str]) -> list[dict]:
    return [
        {"x": column, "y": row, "value": float("nan") if value is None else value}
        for row, values in zip(names, structure["agreement"], strict=True)
        for column, value in zip(names, values, strict=True)
    ]
