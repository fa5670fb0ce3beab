"""Reward models from elsewhere beside each other, as one self-contained HTML file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from scpo_ray.core.bootstrap import Estimate
from scpo_ray.records import ALL_COMMUNITIES
from scpo_ray.reporting import figures
from scpo_ray.reporting.evidence import interval_of
from scpo_ray.reporting.numbers import p_value, percent, points, points_interval
from scpo_ray.reporting.summary import FEW_CLUSTERS, verdict
from scpo_ray.reporting.templating import environment


@dataclass(frozen=True)
class ModelPage:
    """Everything that the page shows; rows as in the tables of the artifact."""

    title: str
    run_dir: str
    seed: int
    created: str
    models: Sequence[str]
    """In the order of the config; the others are compared with the first."""
    accuracy: Mapping[str, Mapping[str, Estimate]]
    """Community -> model -> estimate."""
    comparisons: Sequence[Mapping]
    diagnostics: Mapping[tuple[str, str], Mapping[str, float]]
    """(community, model) -> measures."""
    hashes: Mapping[str, str]
    packages: Mapping[str, str]
    about_pairs: str
    """Which pairs were used, and which were left out, in words."""

    @property
    def sentences(self) -> list[str]:
        """What may be said about the models, over all pairs together."""
        whole = ALL_COMMUNITIES if ALL_COMMUNITIES in self.accuracy else next(iter(self.accuracy))
        found = [_said(row) for row in self.comparisons if row["community"] == whole]
        return [*(found or [f"{self.models[0]} is alone; name further models to compare."]), self.about_pairs]

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing the numbers."""
        found = []
        by_community = {community: next(iter(of.values())) for community, of in self.accuracy.items()}
        lone = [community for community, estimate in by_community.items() if math.isnan(estimate.low)]
        if lone:
            found.append(f"No interval for {', '.join(lone)}: pairs of fewer than two annotators or prompts.")
        few = [name for name, estimate in by_community.items() if 1 < estimate.num_clusters < FEW_CLUSTERS]
        if few:
            found.append(
                f"Fewer than {FEW_CLUSTERS} annotators or prompts behind the intervals of {', '.join(few)}: they are "
                "narrower than they should be."
            )
        equal = [name for name in self.models if self._scores_all_equal(name)]
        if equal:
            found.append(f"{', '.join(equal)} gives every pair equal rewards: its 50% is no measurement.")
        cut = [f"{name} ({percent(self._cut_most(name))})" for name in self.models if self._cut_most(name) >= _MUCH_CUT]
        if cut:
            found.append(
                f"Responses were cut, for being longer than format.max_tokens with their context, by {', '.join(cut)} in the "
                "community where most were: models that see different parts of a text are not compared fairly; raise it."
            )
        return found

    def _cut_most(self, model: str) -> float:
        """The largest share of responses that this model saw cut, over communities."""
        shares = [values["truncated_share"] for (_, name), values in self.diagnostics.items() if name == model]
        return max((share for share in shares if not math.isnan(share)), default=0.0)

    def _scores_all_equal(self, model: str) -> bool:
        shares = [values["share_of_ties"] for (_, name), values in self.diagnostics.items() if name == model]
        return bool(shares) and all(share == 1.0 for share in shares)


def _said(row: Mapping) -> str:
    gain = interval_of(row)
    if verdict(gain) == "none":
        return f"{row['arm']} against {row['against']}: {points(gain.value)} points, without an interval."
    what = f"{points(gain.value)} points {points_interval(gain)}, p after Holm {p_value(row['p_holm'])}"
    if row["p_holm"] <= _LEVEL:
        return f"{row['arm']} is {'better' if gain.value > 0 else 'worse'} than {row['against']}: {what}."
    return f"No difference is shown between {row['arm']} and {row['against']}: {what}."


_LEVEL = 0.05
_MUCH_CUT = 0.01


def render_models(page: ModelPage) -> str:
    """The whole file."""
    rows = [
        {"community": community, "arm": model}
        | {"value": 100 * estimate.value, "low": 100 * estimate.low, "high": 100 * estimate.high}
        for community, of in page.accuracy.items()
        for model, estimate in of.items()
    ]
    svg = Markup(figures.to_svg(figures.by_community(rows, x_title="Accuracy, %")))
    return environment().get_template("models.html.j2").render(page=page, svg=svg)
