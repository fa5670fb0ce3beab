"""The report as one HTML file: nothing is loaded from elsewhere, and texts from data are always escaped."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from markupsafe import Markup

from scpo_ray.reporting.evidence import Evidence
from scpo_ray.reporting.examples import Example, PlantedRow
from scpo_ray.reporting.figures import to_svg
from scpo_ray.reporting.plates import plates
from scpo_ray.reporting.results import Kept, ModelResult
from scpo_ray.reporting.summary import FEW_CLUSTERS, headline, warnings
from scpo_ray.reporting.templating import environment


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
    searches: Sequence[str] = ()
    """Names of searches in the run directory; each has a page."""


@dataclass(frozen=True)
class Page:
    """Everything that the report shows."""

    title: str
    strategies: Sequence[str]
    """The main one, then the controls."""
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
    steps: str
    """Whether the arms were trained for equally many steps, in words."""
    num_rejected: int
    num_suspicious: int
    planted: Sequence[PlantedRow]
    examples: Mapping[str, Sequence[Example]]
    settings: Mapping[str, float]
    """The numbers that the definitions quote: agreement_threshold, weight_temperature, test_threshold."""
    provenance: Provenance
    evidence: Evidence = field(default_factory=Evidence)

    @property
    def num_seeds(self) -> int:
        """Trainings of every model that differ in their seed alone."""
        return max((row["num_seeds"] for row in self.evidence.metrics if row["arm"] != "global"), default=1)

    @property
    def strategy(self) -> str:
        """The main one."""
        return self.strategies[0]

    @property
    def main_results(self) -> list[ModelResult]:
        """Those of the main strategy."""
        return [result for result in self.results if result.strategy == self.strategy]


def render(page: Page) -> str:
    """The whole file."""
    script = resources.files("scpo_ray.reporting").joinpath("ledger_search.js").read_text(encoding="utf-8")
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            script=Markup(script),
            # The browser runs this script alone: text from data could not, even if it were not escaped.
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            summary=headline(page.results, strategy=page.strategy, comparisons=page.evidence.comparisons),
            warnings=warnings(
                page.results,
                strategy=page.strategy,
                failures=len(page.failures),
                leaks=page.leakage_warnings,
                comparisons=page.evidence.comparisons,
                ties=page.evidence.ties,
                most_cut=page.evidence.most_cut,
            ),
            plates=_drawn(page),
            few_clusters=FEW_CLUSTERS,
        )
    )


def _drawn(page: Page) -> dict[str, list[tuple[str, str, Markup]]]:
    """Section -> (name, caption, SVG) of its figures."""
    found: dict[str, list[tuple[str, str, Markup]]] = {}
    for plate in plates(page.results, page.evidence, strategies=page.strategies):
        found.setdefault(plate.section, []).append((plate.name, plate.caption, Markup(to_svg(plate.chart))))
    return found
