"""Words from numbers: what may be said about a run, and what must be said beside it."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

from scpo_ray.core.bootstrap import Estimate
from scpo_ray.reporting.numbers import has_interval, points
from scpo_ray.reporting.results import ModelResult, strategy_label

_NO_TIES: Mapping[tuple[str, str], tuple[int, int]] = {}

FEW_CLUSTERS = 10
"""Below this many clusters a percentile bootstrap's interval is noticeably too narrow."""

Verdict = Literal["above", "below", "spans", "none"]


def verdict(estimate: Estimate) -> Verdict:
    """Where the interval lies: above zero, below zero, spanning (or touching) it; none where there is no interval."""
    if not has_interval(estimate):
        return "none"
    return "above" if estimate.low > 0 else "below" if estimate.high < 0 else "spans"


def headline(results: Sequence[ModelResult], *, strategy: str, comparisons: Sequence[Mapping] = ()) -> str:
    """The main strategy's gains and losses as one paragraph; the controls' averages beside them.

    Args:
        comparisons: rows of the comparisons' table; what is left of the intervals' verdicts after Holm's correction.
    """
    main = [result for result in results if result.strategy == strategy]
    if not main:
        return (
            f"No community has a reward model of {strategy_label(strategy)} that was evaluated, so this run says "
            "nothing about gains or losses."
        )
    sentences = [_only(main[0])] if len(main) == 1 else [_counts(main), _mean_and_worst(main)]
    sentences += [_after_holm(main, comparisons), _majority(main), _controls(main, results)]
    return " ".join(sentence for sentence in sentences if sentence)


def _only(result: ModelResult) -> str:
    gain = result.of("overall_gain")
    place = f"In {result.community}, the only community evaluated, {result.label}"
    side = verdict(gain)
    if gain.num_pairs == 0:
        return f"{result.community}, the only community evaluated, has no test pairs, so its accuracy is not known."
    if side == "none":
        return f"{place} changed overall accuracy by {points(gain.value)} points, without an interval: {_LONE}."
    if side == "spans":
        return (
            f"{place} changed overall accuracy by {points(gain.value)} points, which chance in the sample may explain "
            f"({_range(gain)} spans zero)."
        )
    verb = "raised" if side == "above" else "lowered"
    return (
        f"{place} {verb} overall accuracy by {100 * abs(gain.value):.1f} points, beyond what chance in the sample "
        f"explains ({_range(gain)})."
    )


def _counts(main: Sequence[ModelResult]) -> str:
    sides = [verdict(result.of("overall_gain")) for result in main]
    total = len(sides)
    above, below, spans, none = (sides.count(side) for side in ("above", "below", "spans", "none"))
    beyond = "beyond what chance in the sample explains"
    subject = _capitalised(main[0].label)
    if spans == total:
        return (
            f"{subject} neither raised nor lowered overall accuracy {beyond} in any of {total} communities: every "
            "interval spans zero."
        )
    where = f"all {total}" if above == total else f"{above} of {total}" if above else f"none of {total}"
    clauses = [f"raised overall accuracy in {where} communities {beyond}" + (" (interval above zero)" if above else "")]
    if below:
        many = f"all {below}" if below == total else str(below)
        clauses.append(f"lowered it in {many}" + ("" if above else " (interval below zero)"))
    if spans:
        clauses.append(f"for {spans} the interval spans zero")
    if none:
        clauses.append(f"for {none} there is no interval ({_LONE})")
    return f"{subject} {_clauses(clauses)}."


def _after_holm(main: Sequence[ModelResult], comparisons: Sequence[Mapping]) -> str:
    """How many of the gains and losses are beyond chance once the number of tests is corrected for."""
    clear = [result.community for result in main if verdict(result.of("overall_gain")) in ("above", "below")]
    corrected = {
        row["community"]: row["p_holm"]
        for row in comparisons
        if (row["arm"], row["against"], row["metric"]) == (main[0].strategy, "global", "overall")
    }
    if not clear or not corrected:
        return ""
    left = [name for name in clear if corrected.get(name, 1.0) <= _LEVEL]
    if len(left) == len(clear):
        return f"Corrected for the number of tests (Holm), {'this holds' if len(clear) == 1 else 'all of these hold'}."
    holds = f"only {_names(left)} {'holds' if len(left) == 1 else 'hold'}" if left else "none of it holds"
    return f"Corrected for the number of tests (Holm), {holds}."


_LEVEL = 0.05
_LONE = "test pairs of fewer than two annotators or prompts"


def _mean_and_worst(main: Sequence[ModelResult]) -> str:
    measured = [result for result in main if result.of("overall_gain").num_pairs]
    if not measured:
        return ""
    worst = min(measured, key=lambda result: result.of("overall_gain").value)
    smallest = worst.of("overall_gain").value
    name = "largest loss" if smallest < 0 else "smallest gain"
    return (
        f"Averaged over communities, the change is {points(_mean(measured, 'overall_gain'))} points; the {name} is "
        f"{worst.community}'s with {points(smallest)}."
    )


def _majority(main: Sequence[ModelResult]) -> str:
    measured = [result for result in main if result.of("majority_gain").num_pairs]
    if not measured:
        return "There are no test pairs of the majority, so what was forgotten is not known."
    mean = _mean(measured, "majority_gain")
    moved = f"{'lost' if mean < 0 else 'gained'} {100 * abs(mean):.1f} points"
    if abs(mean) < 0.0005:
        moved = f"neither gained nor lost ({points(mean)} points)"
    if len(measured) == 1:
        gain = measured[0].of("majority_gain")
        side = verdict(gain)
        tail = "no interval" if side == "none" else _range(gain) + (" spans zero" if side == "spans" else "")
        return f"On the majority's pairs it {moved} ({tail})."
    below = sum(verdict(result.of("majority_gain")) == "below" for result in measured)
    share = f"all {below}" if below == len(measured) else f"{below or 'none'} of {len(measured)}"
    return f"On the majority's pairs it {moved} on average (interval below zero for {share} models)."


def _controls(main: Sequence[ModelResult], results: Sequence[ModelResult]) -> str:
    """Average gains of every strategy over the communities in which all of them were measured; no test between them."""
    measured = {
        (result.strategy, result.community): result for result in results if result.of("overall_gain").num_pairs
    }
    strategies = list(dict.fromkeys((main[0].strategy, *(strategy for strategy, _ in measured))))
    common = [
        result.community for result in main if all((strategy, result.community) in measured for strategy in strategies)
    ]
    if len(strategies) == 1 or not common:
        return ""
    groups = {strategy: [measured[strategy, community] for community in common] for strategy in strategies}
    where = (
        f"For {common[0]}"
        if len(common) == 1
        else f"Averaged over the {len(common)} communities that all strategies have"
    )
    gains = [f"{points(_mean(group, 'overall_gain'))} with {strategy_label(name)}" for name, group in groups.items()]
    sentence = f"{where}, overall accuracy changed by {_names(gains)}"
    if all(result.of("majority_gain").num_pairs for group in groups.values() for result in group):
        losses = [points(_mean(group, "majority_gain")) for group in groups.values()]
        sentence += f", the majority's by {_names(losses)}"
    return f"{sentence} points."


def warnings(
    results: Sequence[ModelResult],
    *,
    strategy: str,
    failures: int,
    leaks: Sequence[str] = (),
    comparisons: Sequence[Mapping] = (),
    ties: Mapping[tuple[str, str], tuple[int, int]] = _NO_TIES,
    most_cut: float = 0.0,
) -> list[str]:
    """What a reader must know before believing the main strategy's numbers, most serious first.

    Args:
        most_cut: the largest share of a community's test responses that were cut to format.max_tokens.
        ties: (arm, community) -> how many of how many seeds' models give every pair equal rewards.
    """
    main = [result for result in results if result.strategy == strategy]
    found = [_tied(arm, community, *counts) for (arm, community), counts in ties.items()]
    if most_cut >= _MUCH_CUT:
        found.append(
            f"Up to {100 * most_cut:.1f}% of a community's test responses were longer than format.max_tokens with their "
            "context, and were cut before they were scored."
        )
    if failures:
        found.append(
            f"{failures} {'models are' if failures > 1 else 'model is'} missing; the reasons are listed below."
        )
    found += leaks
    lone = [result.community for result in main if verdict(result.of("overall_gain")) == "none"]
    if lone:
        found.append(f"No interval for {_names(lone)}: {_LONE}.")
    few = [
        f"{result.community} ({result.of('overall_gain').num_clusters} {result.cluster_unit})"
        for result in main
        if 1 < result.of("overall_gain").num_clusters < FEW_CLUSTERS
    ]
    if few:
        found.append(
            f"Fewer than {FEW_CLUSTERS} clusters behind the intervals of {_names(few)}: with so few, a bootstrap "
            "interval is narrower than it should be."
        )
    spans = [result for result in main if verdict(result.of("overall_gain")) == "spans"]
    if spans:
        names = _names([result.community for result in spans])
        found.append(
            f"The interval of the overall gain spans zero for {names}: neither a gain nor a loss is shown there."
        )
    return found + _too_small_to_show(spans, comparisons)


def _tied(arm: str, community: str, num_tied: int, num_seeds: int) -> str:
    model = "global model" if arm == "global" else f"model of {strategy_label(arm)}"
    if num_tied == num_seeds:
        return (
            f"The {model} gives all pairs of {community} equal rewards: its 50% is no measurement, and what is compared with "
            "it is none either."
        )
    return (
        f"The {model} gives all pairs of {community} equal rewards in {num_tied} of {num_seeds} seeds: those count as 50% in "
        "its mean and measure nothing."
    )


_MUCH_CUT = 0.01
_TOO_FEW = 6
"""Below this many clusters no pattern of signs is rarer than 5%."""
_LARGE_EFFECT = 0.05
"""Differences of accuracy that a sample cannot show are worth a warning from here on."""


def _too_small_to_show(spans: Sequence[ModelResult], comparisons: Sequence[Mapping]) -> list[str]:
    """For intervals that span zero: what the sample could have shown at all."""
    detectable = {
        (row["community"], row["arm"]): row["detectable"]
        for row in comparisons
        if row["against"] == "global" and row["metric"] == "overall"
    }
    found = []
    for result in spans:
        size = result.of("overall_gain").num_clusters
        smallest = detectable.get((result.community, result.strategy), 0.0)
        who = f"{result.community}: its {size} {result.cluster_unit} in the test pairs cannot show"
        if size < _TOO_FEW:
            found.append(f"{who} any difference at the 5% level.")
        elif smallest >= _LARGE_EFFECT:
            found.append(f"{who} a difference of less than {100 * smallest:.1f} points (80% power, 5% level).")
    return found


def leakage_warnings(leakage: Mapping[str, Mapping[str, float]], *, split_by: str) -> list[str]:
    """What test pairs share with training although the split was to keep it apart; and pairs known from training."""
    test = leakage.get("test", {})
    annotators, prompts = test.get("annotator_in_train", 0.0), test.get("prompt_group_in_train", 0.0)
    both = test.get("both_responses_in_train", 0.0)
    found = []
    if annotators and split_by != "prompt":
        found.append(
            f"{_capitalised(_about(annotators))} of the test pairs are by annotators who also occur in training."
        )
    if prompts and split_by in ("prompt", "pair"):
        found.append(f"{_capitalised(_about(prompts))} of the test pairs have a prompt that also occurs in training.")
    if both:
        found.append(
            f"In {_about(both)} of the test pairs both responses also occur in training pairs: these test new raters, "
            "not new texts."
        )
    return found


def _mean(results: Sequence[ModelResult], metric: str) -> float:
    return fmean(result.of(metric).value for result in results)


def _range(estimate: Estimate) -> str:
    return f"interval {points(estimate.low)} to {points(estimate.high)}"


def _about(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.0005 else "less than 0.1%"


def _clauses(parts: Sequence[str]) -> str:
    """a; a, and b; a, b, and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _names(parts: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
