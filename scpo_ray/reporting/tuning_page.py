"""A search as one self-contained HTML file: what was tried, what was chosen and by which criterion, what mattered."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt
from markupsafe import Markup

from scpo_ray.config import Value
from scpo_ray.reporting import tuning_figures as figures
from scpo_ray.reporting.figures import to_svg
from scpo_ray.reporting.templating import environment
from scpo_ray.tuning.records import TrialRecord
from scpo_ray.tuning.space import describe

TAU, BETA = "select.agreement_threshold", "select.weight_temperature"
_CHOSEN, _ON_FRONT, _TRIED, _BASELINE = "chosen", "on the front", "tried", "as configured"


@dataclass(frozen=True)
class TuningPage:
    """Everything that the page shows."""

    title: str
    run_dir: str
    seed: int
    created: str
    keys: Sequence[str]
    """The searched settings."""
    objectives: Sequence[str]
    criterion: str
    search: str
    records: Sequence[TrialRecord]
    """In the order in which they ended."""
    best: TrialRecord
    front: Sequence[TrialRecord]
    baselines: Mapping[str, TrialRecord]
    importance: Mapping[str, float]
    """Setting -> share of the first objective's variance over trials; empty where too few trials tell."""
    num_validation: Mapping[str, int]
    """Community -> validation pairs."""

    @property
    def sentences(self) -> list[str]:
        """What may be said, in words."""
        states = [record.state for record in self.records]
        first, *others = self.objectives
        counted = f"{len(states)} trials: {states.count('finished')} finished"
        for state in ("stopped", "failed", "interrupted"):
            if states.count(state):
                counted += f", {states.count(state)} {state}"
        how = f"the highest {first}" if not others else f"{self.criterion} of {', '.join(self.objectives)}"
        found = [f"{counted}. Chosen by {how}: {describe(self.best.point)}."]
        for name, baseline in self.baselines.items():
            if not baseline.objectives:
                found.append(f"The settings {name} could not be tried: {baseline.error}")
                continue
            gain = 100 * (self.best.objectives[first] - baseline.objectives[first])
            found.append(
                f"Beside {_called(name)}, {first} is {gain:+.1f} points on the same validation pairs.".replace("-", "−")
            )
        smallest = min(self.num_validation, key=self.num_validation.__getitem__)
        found.append(
            f"The best of many trials looks better on the pairs that chose it than it is: with {self.num_validation[smallest]:,} "
            f"validation pairs in {smallest}, one standard error is {_standard_error(self.num_validation[smallest]):.1f} points "
            "there. What it is worth is told by test pairs, once."
        )
        return found

    def figures(self) -> list[tuple[str, Markup]]:
        """(caption, SVG) of every figure that the trials allow."""
        return [(caption, Markup(to_svg(chart))) for caption, chart in self._charts()]

    def _charts(self) -> list[tuple[str, alt.TopLevelMixin]]:
        measured = [record for record in self.records if record.state == "finished"]
        first = self.objectives[0]
        values = [100 * record.objectives[first] for record in measured]
        found: list[tuple[str, alt.TopLevelMixin]] = []
        if len(measured) > 1:
            points = [{key.split(".", 1)[1]: record.point[key] for key in self.keys} for record in measured]
            chosen = [record.digest for record in measured].index(self.best.digest)
            chart = figures.parallel_coordinates(points, values, chosen=chosen, title=f"{first}, %")
            found.append(("Every trial: a line through its settings to its objective. Thick: the chosen one.", chart))
            by_trial = [
                100 * record.objectives[first] if record.state == "finished" else math.nan for record in self.records
            ]
            found.append(("Trial after trial. Line: the best so far.", figures.progress(by_trial, title=first)))
        if len(self.objectives) > 1:
            rows = [self._mark(record, *self.objectives[:2]) for record in measured]
            rows += [
                {**self._mark(record, *self.objectives[:2]), "kind": _called(name)}
                for name, record in self.baselines.items()
                if record.objectives
            ]
            caption = f"Two objectives. The chosen point is the one of the front with the best {self.criterion}."
            found.append((caption, figures.front(rows, x_title=self.objectives[0], y_title=self.objectives[1])))
        if {TAU, BETA} <= set(self.keys):
            rows = [
                {"x": tau, "y": beta, "value": value, "kind": self._kind(record)}
                for record, value in zip(measured, values, strict=True)
                if _is_number(tau := record.point[TAU]) and _is_number(beta := record.point[BETA])
            ]
            if rows:
                chart = figures.plane(rows, x_title="τ", y_title="β", title=first, log_y=True)
                found.append((f"{first} over τ and β, percent. Framed: the chosen point.", chart))
        if self.importance:
            caption = f"How much of the variance of {first} over the trials each setting explains (fANOVA)."
            shares = {key.split(".", 1)[1]: share for key, share in self.importance.items()}
            found.append((caption, figures.importance(shares)))
        return found

    def _mark(self, record: TrialRecord, x: str, y: str) -> dict:
        return {"x": 100 * record.objectives[x], "y": 100 * record.objectives[y], "kind": self._kind(record)}

    def _kind(self, record: TrialRecord) -> str:
        if record.digest == self.best.digest:
            return _CHOSEN
        return _ON_FRONT if any(record.digest == other.digest for other in self.front) else _TRIED


def _called(name: str) -> str:
    return {"auto": "τ and β by the rule (auto)"}.get(name, f"the settings {name}")


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _standard_error(num_pairs: int) -> float:
    """Of an accuracy near one half, percentage points, were the pairs independent; clusters make it larger."""
    return 50 / math.sqrt(max(num_pairs, 1))


def render_tuning(page: TuningPage) -> str:
    """The whole file."""
    return environment().get_template("tune.html.j2").render(page=page)
