"""Policies as one self-contained HTML file: what each gained for whom, what it cost, and whether truth followed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt
from markupsafe import Markup

from scpo_ray.core.bootstrap import Estimate
from scpo_ray.reporting import ppo_figures as figures
from scpo_ray.reporting.figures import to_svg
from scpo_ray.reporting.numbers import NONE, count, has_interval, plain
from scpo_ray.reporting.summary import verdict
from scpo_ray.reporting.templating import environment

PHASES = ("generation", "scoring", "training", "synchronising")
_JUDGES = {"proxy": "reward model", "held out": "held-out model", "truth": "true utility"}
_UNITS = {"proxy": "Standard deviations", "held out": "Standard deviations", "truth": "Utility"}
_PANELS = {
    "kl": "KL, nats per response",
    "length": "Length, tokens",
    "entropy": "Entropy, nats per token",
    "unfinished_share": "Unfinished, share of responses",
}
_SMOOTHED = (
    "Smoothed: each measured step is averaged with up to a twentieth of all on each side (two at least), as many before as "
    "after. Dot: the last step."
)
_VERBS = {"above": "gained", "below": "lost", "spans": "shows no change", "none": "shows no change"}
_WHERE = {
    "above": "interval above zero",
    "below": "interval below zero",
    "spans": "the interval includes zero",
    "none": "no interval",
}


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy and the way it went."""

    name: str
    composition: str
    """each, mixture, max_min, conjunction or routed."""
    communities: tuple[str, ...]
    """Whose reward models it was trained on."""
    steps: Sequence[Mapping[str, float]]
    """One mapping of measures per PPO step."""

    def series(self, key: str) -> list[float]:
        """A measure at every step; NaN where a step has none."""
        return [step.get(key, math.nan) for step in self.steps]

    def largest(self, key: str) -> float:
        """Of all steps; NaN without one."""
        return max((value for value in self.series(key) if not math.isnan(value)), default=math.nan)

    def over_time(self, key: str) -> float:
        """Mean over the steps, each counted by its seconds: of a share or a rate, that of all the time. NaN without steps."""
        seconds = self.series("seconds")
        total = sum(seconds)
        weighed = sum(value * duration for value, duration in zip(self.series(key), seconds, strict=True))
        return weighed / total if total else math.nan

    @property
    def seconds(self) -> float:
        """All its steps."""
        return sum(self.series("seconds"))


@dataclass(frozen=True)
class Measurement:
    """What a policy's responses to the test prompts are worth to a community."""

    policy: str
    kind: str
    """proxy, held out or truth."""
    community: str
    """Whose judgement."""
    start: float
    """Mean of the start policy."""
    mean: float
    gain: Estimate
    """Paired, over the start policy on the same prompts."""


@dataclass(frozen=True)
class SampleRow:
    """A test prompt and what every policy answers."""

    prompt: str
    responses: Mapping[str, str]
    """Policy -> text; `start` first."""
    rewards: Mapping[str, Mapping[str, float]]
    """Policy -> community -> normalised reward."""


@dataclass(frozen=True)
class BestOfN:
    """What choosing among n responses of the start policy is worth, without training."""

    community: str
    kind: str
    n: int
    mean: float
    gain: Estimate
    kl_bound: float
    """log n - (n-1)/n, nats per response: at most this far from the start policy."""


@dataclass(frozen=True)
class PpoPage:
    """Everything that the page shows."""

    title: str
    run_dir: str
    seed: int
    created: str
    start: str
    """Address of the start policy."""
    policies: Sequence[TrainedPolicy]
    measured: Sequence[Measurement]
    kl: Mapping[str, float]
    """Policy -> nats per response on the test prompts."""
    samples: Sequence[SampleRow]
    best_of_n: Sequence[BestOfN]
    num_prompts: int
    """Test prompts."""
    responses_per_prompt: int
    num_left_out: int
    """Prompts that were too long."""

    @property
    def kinds(self) -> list[str]:
        """Of the measurements, the proxy first."""
        return [kind for kind in _JUDGES if any(row.kind == kind for row in self.measured)]

    @property
    def sentences(self) -> list[str]:
        """What may be said, in words: of the measuring, of each policy, and what is not shown."""
        return [self._overview(), *(self._story(policy) for policy in self.policies), self._not_shown()]

    def figures(self) -> list[tuple[str, Markup]]:
        """(caption, SVG) of every figure that there are numbers for."""
        return [(caption, Markup(to_svg(chart))) for caption, chart in self._charts()]

    @property
    def measurements(self) -> dict[tuple[str, str], dict[str, Measurement]]:
        """(policy, community) -> kind -> what was measured."""
        found: dict[tuple[str, str], dict[str, Measurement]] = {}
        for row in self.measured:
            found.setdefault((row.policy, row.community), {})[row.kind] = row
        return found

    @property
    def baselines(self) -> dict[tuple[str, int], dict[str, BestOfN]]:
        """(community, n) -> kind -> the best of n."""
        found: dict[tuple[str, int], dict[str, BestOfN]] = {}
        for row in self.best_of_n:
            found.setdefault((row.community, row.n), {})[row.kind] = row
        return found

    def of(self, policy: TrainedPolicy, kind: str, *, is_own: bool = True) -> list[Measurement]:
        """What a policy is worth to the communities that it was trained for, or to the others."""
        return [
            row
            for row in self.measured
            if (row.policy, row.kind) == (policy.name, kind) and (row.community in policy.communities) == is_own
        ]

    def _overview(self) -> str:
        many = f"{count(len(self.policies))} policies were" if len(self.policies) != 1 else "1 policy was"
        left_out = "1 prompt was" if self.num_left_out == 1 else f"{count(self.num_left_out)} prompts were"
        said = (
            f"{many} trained by PPO from {self.start} and compared with it on {count(self.num_prompts)} test prompts that "
            f"none was trained on, responses to each: {self.responses_per_prompt}."
        )
        return said + (f" {left_out} too long and left out." if self.num_left_out else "")

    def _story(self, policy: TrainedPolicy) -> str:
        own, others = self.of(policy, "proxy"), self.of(policy, "proxy", is_own=False)
        models = "model" if len(policy.communities) == 1 else "models"
        said = [f"Under the reward {models} that it was trained on, policy {policy.name} {_told(own)}." if own else ""]
        if not own:
            said = [f"Policy {policy.name} was not measured under the reward {models} that it was trained on."]
        if others:
            said.append(f"Under the models of others it {_told(others)}.")
        said += _beside(own, self.of(policy, "held out"), noun="reward under a held-out model")
        said += _beside(own, self.of(policy, "truth"), noun="true utility")
        if policy.composition == "max_min" and len(own) > 1:
            said.append(_worst_off(own))
        if policy.name in self.kl:
            said.append(f"It paid a KL divergence of {plain(self.kl[policy.name])} nats per response.")
        said += [self._without_training(community) for community in policy.communities if len(policy.communities) == 1]
        return " ".join(sentence for sentence in said if sentence)

    def _without_training(self, community: str) -> str:
        rows = [row for row in self.best_of_n if (row.community, row.kind) == (community, "proxy")]
        if not rows:
            return ""
        most = max(rows, key=lambda row: row.n)
        return (
            f"Without training, the best of {most.n} responses of the start policy changes the reward by "
            f"{_written(most.gain)} at no more than {plain(most.kl_bound)} nats."
        )

    def _not_shown(self) -> str:
        said = "Each policy was trained once: what another seed would give is not shown, and no interval holds it."
        if "truth" in self.kinds:
            return said
        if "held out" in self.kinds:
            return f"{said} A held-out model is a model too: what the members themselves would prefer is not shown."
        return (
            f"{said} The rewards are those of the very models that the policies were trained on: what the members "
            "themselves would prefer is not shown."
        )

    def _charts(self) -> list[tuple[str, alt.TopLevelMixin]]:
        found = self._against_kl()
        found += self._followed("utility of", beside="true utility")
        found += self._followed("held out reward of", beside="reward of a held-out model")
        found += [self._matrix(kind) for kind in self.kinds]
        rows = [
            {"policy": policy.name, "measure": title, "step": step, "value": value}
            for policy in self.policies
            for key, title in _PANELS.items()
            for step, value in enumerate(policy.series(key), 1)
        ]
        if rows:
            chart = figures.through_training(rows, measures=list(_PANELS.values()))
            found.append(("Training, step after step, as measured on the responses of each step.", chart))
            shares = {
                policy.name: {phase: policy.over_time(f"{phase}_share") for phase in PHASES}
                for policy in self.policies
                if policy.steps
            }
            caption = (
                "Where the time of the steps goes, percent. The rest is what none of the four phases accounts for."
            )
            found.append((caption, figures.time_shares(shares)))
        return found

    def _against_kl(self) -> list[tuple[str, alt.TopLevelMixin]]:
        rows = [
            {"community": community, "policy": policy.name} | row
            for policy in self.policies
            for community in policy.communities
            for row in _against_kl(policy, policy.series(f"reward of {community}"))
        ]
        if not rows:
            return []
        shown = {row["community"] for row in rows}
        points = [
            {"community": row.community, "kl": row.kl_bound, "value": row.mean, "text": f"n = {row.n}"}
            for row in self.best_of_n
            if row.kind == "proxy" and row.community in shown
        ]
        caption = (
            "Reward under a community's model against KL from the start policy, through the steps, on each step's own "
            f"training prompts. {_SMOOTHED}"
        )
        if points:
            caption += " Diamonds: the best of n responses of the start policy, on test prompts, at the most that its KL can be."
        return [(caption, figures.reward_against_kl(rows, points))]

    def _followed(self, prefix: str, *, beside: str) -> list[tuple[str, alt.TopLevelMixin]]:
        """What one community's policy was trained on, and `prefix` COMMUNITY beside it; nothing where no step has that."""
        lines = ("reward of its community's model", beside)
        rows = [
            {"policy": policy.name, "line": line} | row
            for policy in self.policies
            if len(policy.communities) == 1 and not math.isnan(policy.largest(f"{prefix} {policy.communities[0]}"))
            for line, key in zip(lines, ("reward of", prefix), strict=True)
            for row in _against_kl(policy, figures.over_first(policy.series(f"{key} {policy.communities[0]}")))
        ]
        if not rows:
            return []
        units = (
            " Utility has a unit of its own: compare where the lines turn, not how high they are."
            if prefix == "utility of"
            else ""
        )
        caption = (
            f"What a policy was trained on and the {beside}, on each step's own training prompts: gain over the mean of the "
            f"first steps (a tenth of those measured, five at most).{units} {_SMOOTHED}"
        )
        return [(caption, figures.over_optimisation(rows, lines=lines))]

    def _matrix(self, kind: str) -> tuple[str, alt.TopLevelMixin]:
        own = {policy.name: policy.communities for policy in self.policies}
        rows = [
            {
                "policy": row.policy,
                "community": row.community,
                "value": row.gain.value,
                "is_clear": verdict(row.gain) in ("above", "below"),
                "is_own": row.community in own.get(row.policy, ()),
            }
            for row in self.measured
            if row.kind == kind
        ]
        caption = (
            f"Who gains from whose policy: gain over the start policy on the test prompts, by each community's {_JUDGES[kind]}. "
            "Star: the 95% interval excludes zero. Frame: the policy was trained for this community."
        )
        return caption, figures.steerability(rows, unit=_UNITS[kind])


def signed(value: float | None) -> str:
    """-0.1234 -> −0.12, 0.5 -> +0.50; a dash where there is none. Only zero itself has no sign."""
    if value is None or math.isnan(value):
        return NONE
    return "0.00" if value == 0 else f"{value:+.2f}".replace("-", "−")


def signed_interval(estimate: Estimate) -> str:
    """[−0.10, +0.42]; a dash where there is none."""
    return f"[{signed(estimate.low)}, {signed(estimate.high)}]" if has_interval(estimate) else NONE


def _written(estimate: Estimate) -> str:
    return f"{signed(estimate.value)} {signed_interval(estimate)}" if has_interval(estimate) else signed(estimate.value)


def _told(rows: Sequence[Measurement]) -> str:
    """gained for A (+0.52 [+0.31, +0.74], interval above zero) and B (...); lost for C (...)."""
    clauses: dict[str, list[str]] = {verb: [] for verb in _VERBS.values()}
    for row in rows:
        side = verdict(row.gain)
        clauses[_VERBS[side]].append(f"{row.community} ({_written(row.gain)}, {_WHERE[side]})")
    return "; ".join(f"{verb} for {_and(names)}" for verb, names in clauses.items() if names)


def _beside(proxies: Sequence[Measurement], others: Sequence[Measurement], *, noun: str) -> list[str]:
    """Whether what was not trained on followed what was, for the communities of a policy.

    Args:
        noun: what `others` measure.
    """
    has_gained = {row.community for row in proxies if verdict(row.gain) == "above"}
    found: dict[str, list[str]] = {}
    for row in others:
        side = verdict(row.gain) if row.community in has_gained else "alone"
        found.setdefault("spans" if side == "none" else side, []).append(f"{row.community} {_written(row.gain)}")
    opening = {
        "above": f"The {noun} followed:",
        "below": f"The reward gained and the {noun} fell, which is over-optimisation:",
        "spans": f"The reward gained and the {noun} did not, as far as these prompts can tell (over-optimisation, or too few "
        "prompts to see a gain):",
    }
    said = [f"{words} {_and(found[side])}." for side, words in opening.items() if side in found]
    if "alone" in found:
        said.append(f"Change in {noun}, where the reward itself shows no gain: {_and(found['alone'])}.")
    return said


def _worst_off(own: Sequence[Measurement]) -> str:
    """What became of the community whose mean was lowest, and whose is lowest now."""
    before, after = min(own, key=lambda row: row.start), min(own, key=lambda row: row.mean)
    now = (
        "is still the lowest" if after is before else f"the lowest is now {after.community}'s with {plain(after.mean)}"
    )
    joint = ", which " if after is before else "; "
    return (
        f"Worst off under the start policy was {before.community} with a mean of {plain(before.start)}; its mean is now "
        f"{plain(before.mean)}{joint}{now}."
    )


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _against_kl(policy: TrainedPolicy, values: Sequence[float]) -> list[dict]:
    """step, kl and value at the steps that have one, both smoothed."""
    kl = figures.smoothed(policy.series("kl"))
    steps = [step for step, value in enumerate(values) if math.isfinite(value) and math.isfinite(kl[step])]
    smooth = figures.smoothed([values[step] for step in steps])
    return [{"step": step + 1, "kl": kl[step], "value": value} for step, value in zip(steps, smooth, strict=True)]


def render_ppo(page: PpoPage) -> str:
    """The whole file."""
    made = environment()
    made.filters |= {"signed": signed, "signed_interval": signed_interval}
    return made.get_template("ppo.html.j2").render(page=page, judges=_JUDGES, phases=PHASES)
