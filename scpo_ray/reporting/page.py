"""The report as one HTML file: nothing is loaded from elsewhere, and texts from data are always escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from scpo_ray.reporting import numbers
from scpo_ray.reporting.examples import Example, PlantedRow
from scpo_ray.reporting.figures import PlotRow, interval_plot
from scpo_ray.reporting.results import Kept, ModelResult, strategy_label
from scpo_ray.reporting.summary import FEW_CLUSTERS, headline, verdict, warnings


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from."""

    created: str
    run_dir: str
    seed: int
    settings: Sequence[tuple[str, str, str]]
    """(key, this run's value, the default) where they differ."""
    packages: Mapping[str, str]
    stages: Sequence[tuple[str, float, str]]
    """(artifact, seconds, content hash), in data-flow order."""
    trainings: Sequence[Mapping]
    """Per reward model: name, num_pairs, num_steps, num_tokens, num_padded_tokens, wall_time_s, content_hash."""


@dataclass(frozen=True)
class Page:
    """Everything that the report shows."""

    title: str
    strategy: str
    results: Sequence[ModelResult]
    failures: Mapping[str, str]
    """STRATEGY/COMMUNITY -> reason."""
    majority: Sequence[str]
    splits: Mapping[str, Mapping[str, int]]
    """Pairs per split, by community."""
    kept: Mapping[tuple[str, str], Kept]
    """By (strategy, community)."""
    ruler: str
    """What the global model learned from, and what follows for the shares, in words."""
    sources: Mapping[str, Mapping]
    leakage: Mapping[str, Mapping[str, float]]
    leakage_warnings: Sequence[str]
    rejected: Sequence[Mapping]
    suspicious: Sequence[Mapping]
    num_rejected: int
    num_suspicious: int
    planted: Sequence[PlantedRow]
    examples: Mapping[str, Sequence[Example]]
    settings: Mapping[str, float]
    """The numbers that the definitions quote: agreement_threshold, weight_temperature, test_threshold."""
    provenance: Provenance

    @property
    def main_results(self) -> list[ModelResult]:
        """Those of the main strategy."""
        return [result for result in self.results if result.strategy == self.strategy]


def render(page: Page) -> str:
    """The whole file."""
    environment = Environment(
        loader=PackageLoader("scpo_ray.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formatters = (numbers.percent, numbers.points, numbers.percent_interval, numbers.points_interval)
    environment.filters |= {
        function.__name__: function
        for function in (*formatters, numbers.count, numbers.duration, strategy_label, verdict)
    }
    return environment.get_template("report.html.j2").render(
        page=page,
        summary=headline(page.results, strategy=page.strategy),
        warnings=warnings(
            page.results, strategy=page.strategy, failures=len(page.failures), leaks=page.leakage_warnings
        ),
        gain_plot=_gain_plot(page),
        accuracy_plot=_accuracy_plot(page),
        few_clusters=FEW_CLUSTERS,
    )


def _gain_plot(page: Page) -> Markup:
    rows = [
        PlotRow(result.community, (result.of("overall_gain"), result.of("majority_gain")))
        for result in page.main_results
    ]
    return interval_plot(
        rows,
        panels=("Overall gain, points", "Majority gain, points"),
        scale="gain",
        description=f"Gain of {strategy_label(page.strategy)} over the global model, per community, with 95% intervals",
    )


def _accuracy_plot(page: Page) -> Markup:
    """Communities as groups of strategies where controls ran, else a line per community."""
    has_controls = len({result.strategy for result in page.results}) > 1
    rows: list[PlotRow] = []
    previous = None
    for result in page.results:
        if has_controls and result.community != previous:
            rows.append(PlotRow(result.community))
        previous = result.community
        name = result.label if has_controls else result.community
        rows.append(PlotRow(name, (result.of("acquisition"), result.of("retention"))))
    return interval_plot(
        rows,
        panels=("Acquisition", "Retention"),
        scale="accuracy",
        description="Acquisition and retention of every trained model, with 95% intervals",
    )
