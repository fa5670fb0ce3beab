"""The report's figures and tables as files of their own: PNG and SVG for papers, CSV for programs, Markdown for texts."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from scpo_ray.reporting.evidence import estimate_of, interval_of
from scpo_ray.reporting.figures import to_png, to_svg
from scpo_ray.reporting.numbers import count, percent, percent_interval, points, points_interval
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
    }
    for name, rows in tables.items():
        if rows:
            yield f"tables/{name}.csv", to_csv(rows).encode()
    if page.results:
        yield "tables/headline.md", headline_markdown(page).encode()
    if page.evidence.comparisons:
        yield "tables/comparisons.md", comparisons_markdown(page).encode()


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
    rows = [
        (
            row["metric"].replace("_", " "),
            f"{points(row['value'])} points" if row["metric"].endswith("_gain") else percent(row["value"]),
            points_interval(estimate_of(row))
            if row["metric"].endswith("_gain")
            else percent_interval(estimate_of(row)),
            f"{count(row['num_pairs'])} ({count(row['num_clusters'])})",
        )
        for row in page.evidence.metrics
        if row["arm"] == arm and row["community"] == community
    ]
    return to_markdown(("Accuracy", "Value", "95% interval", "Pairs (annotators or prompts)"), rows)


def comparisons_markdown(page: Page) -> str:
    """The main strategy against every other arm."""
    rows = [
        (
            row["community"],
            row["metric"],
            strategy_label(row["against"]),
            f"{points(row['difference'])} {points_interval(interval_of(row))}",
            f"{row['p_value']:.4f}",
            f"{row['p_holm']:.4f}",
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
