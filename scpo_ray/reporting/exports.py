"""The report's figures and tables as files of their own: PNG and SVG for papers, CSV for programs, Markdown for texts."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from scpo_ray.reporting.evidence import BESIDE_FULL, CurvePoint, estimate_of, interval_of
from scpo_ray.reporting.figures import to_png, to_svg
from scpo_ray.reporting.numbers import count, p_value, percent, percent_interval, points, points_interval
from scpo_ray.reporting.page import Page
from scpo_ray.reporting.plates import plates
from scpo_ray.reporting.results import strategy_label


def exports(page: Page) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of everything; names are relative to the report's folder."""
    for plate in plates(page.results, page.evidence, strategies=page.strategies):
        yield f"figures/{plate.name}.png", to_png(plate.chart)
        yield f"figures/{plate.name}.svg", to_svg(plate.chart).encode()
    tables = {
        "metrics": page.evidence.metrics,
        "comparisons": page.evidence.comparisons,
        "diagnostics": page.evidence.diagnostics,
        "transfer": page.evidence.transfer,
        "opinions": page.evidence.opinions,
        "distances": page.evidence.distances,
        "curves": [_curve_row(point) for point in page.evidence.curve],
        "selection": [
            {"arm": arm, "community": community, **kept.__dict__} for (arm, community), kept in page.kept.items()
        ],
        "agreement": _agreement_rows(page.evidence.structure),
    }
    for name, rows in tables.items():
        if rows:
            yield f"tables/{name}.csv", to_csv(rows).encode()
    if page.results:
        yield "tables/headline.md", headline_markdown(page).encode()
    if page.evidence.comparisons:
        yield "tables/comparisons.md", comparisons_markdown(page).encode()


def _curve_row(point: CurvePoint) -> dict:
    overall = point.estimates["overall"]
    row = {key: getattr(point, key) for key in ("arm", "threshold", "training_share", "num_pairs", "training_flops")}
    return row | {"num_seeds": point.num_seeds, "overall": overall.value, "low": overall.low, "high": overall.high}


def _agreement_rows(structure: Mapping) -> list[dict]:
    """Pairs of communities with votes on the same pairs."""
    names = structure.get("communities", ())
    return [
        {"community": first, "other": second, "agreement": value, "shared_pairs": structure["shared_pairs"][i][j]}
        for i, first in enumerate(names)
        for j, second in enumerate(names)
        if (value := structure["agreement"][i][j]) is not None
    ]


def to_csv(rows: Sequence[Mapping]) -> str:
    """Plain numbers, one row each, columns in the table's order."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def headline_markdown(page: Page) -> str:
    """Gains and losses of every community and arm, percent and percentage points with 95% intervals."""
    rows = [
        (
            result.community,
            result.label,
            f"{count(result.of('overall').num_pairs)} ({count(result.of('overall').num_clusters)})",
            percent(result.before("overall").value),
            f"{points(result.of('overall_gain').value)} {points_interval(result.of('overall_gain'))}",
            f"{percent(result.of('acquisition').value)} {percent_interval(result.of('acquisition'))}",
            f"{percent(result.of('retention').value)} {percent_interval(result.of('retention'))}",
            f"{points(result.of('majority_gain').value)} {points_interval(result.of('majority_gain'))}",
        )
        for result in page.results
    ]
    header = ("Community", "Arm", "Pairs (clusters)", "Global", "Gain", "Acquisition", "Retention", "Majority gain")
    return to_markdown(header, rows)


def model_markdown(page: Page, *, arm: str, community: str) -> str:
    """One model's metrics with intervals, and who is behind them, for its card."""
    of_model = [row for row in page.evidence.metrics if (row["arm"], row["community"]) == (arm, community)]
    rows = [
        (
            row["metric"].replace("_", " "),
            f"{points(row['value'])} points" if _is_difference(row) else percent(row["value"]),
            points_interval(estimate_of(row)) if _is_difference(row) else percent_interval(estimate_of(row)),
            f"{count(row['num_pairs'])} ({count(row['num_clusters'])})",
        )
        for row in of_model
    ]
    table = to_markdown(("Accuracy", "Value", "95% interval", "Pairs (annotators or prompts)"), rows)
    deviation = next((row["seed_sd"] for row in of_model if row["metric"] == "overall"), None)
    if deviation is None:
        return table
    return (
        f"{table}\nMeans over {page.num_seeds} models that differ in their seed alone, of which this is one; standard "
        f"deviation of overall accuracy over them: {points(deviation).removeprefix('+')} points.\n"
    )


def global_markdown(page: Page) -> str:
    """The global model's accuracy on every community's test pairs and on the majority's, for its card."""
    of_global = [row for row in page.evidence.metrics if row["arm"] == "global"]
    measured = [(row["community"], row) for row in of_global if row["metric"] == "overall"]
    measured += [("the majority", row) for row in of_global if row["metric"] == "majority"][:1]
    rows = [
        (
            name,
            percent(row["value"]),
            percent_interval(estimate_of(row)),
            f"{count(row['num_pairs'])} ({row['num_clusters']})",
        )
        for name, row in measured
    ]
    return to_markdown(("Test pairs of", "Accuracy", "95% interval", "Pairs (annotators or prompts)"), rows)


def _is_difference(row: Mapping) -> bool:
    return row["metric"].endswith("_gain") or row["metric"] == BESIDE_FULL


def comparisons_markdown(page: Page) -> str:
    """The main strategy against every other arm."""
    rows = [
        (
            row["community"],
            row["metric"],
            strategy_label(row["against"]),
            f"{points(row['difference'])} {points_interval(interval_of(row))}",
            p_value(row["p_value"]),
            p_value(row["p_holm"]),
            points(row["detectable"]).removeprefix("+"),
        )
        for reference in ("global", *page.strategies[1:])
        for metric in ("overall", "majority")
        for row in page.evidence.against(reference, metric=metric, arm=page.strategy)
    ]
    header = ("Community", "On", "Against", "Difference, points", "p", "p (Holm)", "Detectable, points")
    return to_markdown(header, rows)


def to_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table; pipes in names are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
