"""Words from numbers: the headline, the warnings, and how numbers are written."""

import math

import pytest

from scpo_ray.core.bootstrap import Estimate
from scpo_ray.reporting.numbers import duration, percent, percent_interval, points, points_interval
from scpo_ray.reporting.results import ModelResult, results_from
from scpo_ray.reporting.summary import headline, leakage_warnings, verdict, warnings

NAN = math.nan
UP = (0.022, 0.004, 0.040)
DOWN = (-0.031, -0.050, -0.012)
FLAT = (0.003, -0.010, 0.016)
LONE = (0.1, NAN, NAN)


def estimate(
    value: float, low: float = NAN, high: float = NAN, num_pairs: int = 100, num_clusters: int = 20
) -> Estimate:
    return Estimate(value, low, high, num_pairs, num_clusters)


def result(community: str, gain, majority=DOWN, *, strategy: str = "filter_weight", **counts) -> ModelResult:
    trained = {"overall_gain": estimate(*gain, **counts), "majority_gain": estimate(*majority)}
    return ModelResult(community, strategy, trained, {})


def say(*gains, majority=DOWN) -> str:
    return headline([result(name, gain, majority) for name, gain in zip("ABCDEF", gains, strict=False)], strategy=MAIN)


MAIN = "filter_weight"


class TestHeadline:
    def test_mixed(self):
        assert say(UP, UP, UP, DOWN, FLAT, FLAT) == (
            "SCPO (filter + weight) raised overall accuracy in 3 of 6 communities beyond what chance in the sample "
            "explains (interval above zero), lowered it in 1, and for 2 the interval spans zero. "
            "Averaged over communities, the change is +0.7 points; the largest loss is D's with −3.1. "
            "On the majority's pairs it lost 3.1 points on average (interval below zero for all 6 models)."
        )

    def test_all_losses(self):
        assert say(DOWN, DOWN).startswith(
            "SCPO (filter + weight) raised overall accuracy in none of 2 communities beyond what chance in the sample "
            "explains, and lowered it in all 2 (interval below zero). Averaged over communities, the change is −3.1 "
            "points; the largest loss is A's with −3.1."
        )

    def test_all_gains(self):
        assert say(UP, UP, majority=UP) == (
            "SCPO (filter + weight) raised overall accuracy in all 2 communities beyond what chance in the sample "
            "explains (interval above zero). Averaged over communities, the change is +2.2 points; the smallest gain "
            "is A's with +2.2. On the majority's pairs it gained 2.2 points on average (interval below zero for none "
            "of 2 models)."
        )

    def test_nothing_but_chance(self):
        assert say(FLAT, FLAT).startswith(
            "SCPO (filter + weight) neither raised nor lowered overall accuracy beyond what chance in the sample "
            "explains in any of 2 communities: every interval spans zero."
        )

    def test_losses_and_chance(self):
        assert say(DOWN, FLAT, LONE).startswith(
            "SCPO (filter + weight) raised overall accuracy in none of 3 communities beyond what chance in the sample "
            "explains, lowered it in 1 (interval below zero), for 1 the interval spans zero, and for 1 there is no "
            "interval (test pairs of fewer than two annotators or prompts)."
        )

    @pytest.mark.parametrize(
        ("gain", "sentence"),
        [
            (
                UP,
                "In A, the only community evaluated, SCPO (filter + weight) raised overall accuracy by 2.2 points, "
                "beyond what chance in the sample explains (interval +0.4 to +4.0).",
            ),
            (
                DOWN,
                "In A, the only community evaluated, SCPO (filter + weight) lowered overall accuracy by 3.1 points, "
                "beyond what chance in the sample explains (interval −5.0 to −1.2).",
            ),
            (
                FLAT,
                "In A, the only community evaluated, SCPO (filter + weight) changed overall accuracy by +0.3 points, "
                "which chance in the sample may explain (interval −1.0 to +1.6 spans zero).",
            ),
            (
                LONE,
                "In A, the only community evaluated, SCPO (filter + weight) changed overall accuracy by +10.0 points, "
                "without an interval: test pairs of fewer than two annotators or prompts.",
            ),
        ],
    )
    def test_one_community(self, gain, sentence):
        assert say(gain) == f"{sentence} On the majority's pairs it lost 3.1 points (interval −5.0 to −1.2)."

    def test_no_test_pairs(self):
        text = headline([result("A", (NAN, NAN, NAN), num_pairs=0, num_clusters=0)], strategy=MAIN)
        assert text.startswith("A, the only community evaluated, has no test pairs, so its accuracy is not known.")

    def test_no_community(self):
        assert headline([], strategy=MAIN) == (
            "No community has a reward model of SCPO (filter + weight) that was evaluated, so this run says nothing "
            "about gains or losses."
        )

    def test_a_majority_without_test_pairs_is_not_called_unharmed(self):
        lost = ModelResult("A", MAIN, {"overall_gain": estimate(*UP)}, {})
        assert headline([lost], strategy=MAIN).endswith(
            "There are no test pairs of the majority, so what was forgotten is not known."
        )

    def test_majority_that_stays(self):
        assert say(UP, UP, majority=(0.0, -0.01, 0.01)).endswith(
            "On the majority's pairs it neither gained nor lost (0.0 points) on average (interval below zero for none "
            "of 2 models)."
        )

    def test_controls_over_common_communities_only(self):
        results = [
            result("A", UP),
            result("B", DOWN),
            result("A", (0.05, 0.01, 0.09), UP, strategy="none"),
            result("A", FLAT, UP, strategy="filter"),
        ]
        assert headline(results, strategy=MAIN).endswith(
            "For A, overall accuracy changed by +2.2 with SCPO (filter + weight), +5.0 with full fine-tuning and +0.3 "
            "with filter only, the majority's by −3.1, +2.2 and +2.2 points."
        )
        both = [*results[:3], result("B", (0.01, 0.0, 0.02), UP, strategy="none")]
        assert headline(both, strategy=MAIN).endswith(
            "Averaged over the 2 communities that all strategies have, overall accuracy changed by −0.5 with SCPO "
            "(filter + weight) and +3.0 with full fine-tuning, the majority's by −3.1 and +2.2 points."
        )

    def test_a_control_elsewhere_is_not_compared(self):
        assert "changed by" not in headline([result("A", UP), result("B", UP, strategy="none")], strategy=MAIN)

    def test_another_main_strategy_opens_with_a_capital(self):
        results = [result(name, UP, strategy="none") for name in "AB"]
        assert headline(results, strategy="none").startswith("Full fine-tuning raised overall accuracy in all 2")


class TestHolm:
    def said(self, *p_values: float) -> str:
        row = {"arm": MAIN, "against": "global", "metric": "overall"}
        rows = [row | {"community": name, "p_holm": p} for name, p in zip("AB", p_values, strict=True)]
        return headline([result("A", UP), result("B", DOWN)], strategy=MAIN, comparisons=rows)

    def test_what_is_left_after_correction(self):
        assert "Corrected for the number of tests (Holm), all of these hold." in self.said(0.01, 0.05)
        assert "Corrected for the number of tests (Holm), only B holds." in self.said(0.06, 0.02)
        assert "Corrected for the number of tests (Holm), none of it holds." in self.said(0.2, NAN)


class TestWarnings:
    def test_every_kind(self):
        results = [result("A", FLAT), result("B", LONE, num_clusters=1), result("C", UP, num_clusters=7)]
        assert warnings(results, strategy=MAIN, failures=2, leaks=["Leaks."]) == [
            "2 models are missing; the reasons are listed below.",
            "Leaks.",
            "No interval for B: test pairs of fewer than two annotators or prompts.",
            "Fewer than 10 clusters behind the intervals of C (7 annotators): with so few, a bootstrap interval is "
            "narrower than it should be.",
            "The interval of the overall gain spans zero for A: neither a gain nor a loss is shown there.",
        ]

    def test_a_model_that_scores_everything_equal(self):
        found = warnings(
            [result("A", DOWN)],
            strategy=MAIN,
            failures=0,
            ties={("global", "A"): (1, 1), (MAIN, "A"): (3, 3), ("none", "A"): (1, 3)},
        )
        assert found == [
            "The global model gives all pairs of A equal rewards: its 50% is no measurement, and what is compared with it is "
            "none either.",
            "The model of SCPO (filter + weight) gives all pairs of A equal rewards: its 50% is no measurement, and what is "
            "compared with it is none either.",
            "The model of full fine-tuning gives all pairs of A equal rewards in 1 of 3 seeds: those count as 50% in its mean "
            "and measure nothing.",
        ]

    def test_responses_that_were_cut(self):
        assert warnings([result("A", DOWN)], strategy=MAIN, failures=0, most_cut=0.009) == []
        (found,) = warnings([result("A", DOWN)], strategy=MAIN, failures=0, most_cut=0.25)
        assert found.startswith("Up to 25.0% of a community's test responses were longer than format.max_tokens")

    def test_what_a_sample_cannot_show(self):
        row = {"arm": MAIN, "against": "global", "metric": "overall", "p_holm": 1.0}
        rows = [row | {"community": "A", "detectable": NAN}, row | {"community": "B", "detectable": 0.062}]
        results = [result("A", FLAT, num_clusters=4), result("B", FLAT, num_clusters=12)]
        assert warnings(results, strategy=MAIN, failures=0, comparisons=rows)[-2:] == [
            "A: its 4 annotators in the test pairs cannot show any difference at the 5% level.",
            "B: its 12 annotators in the test pairs cannot show a difference of less than 6.2 points (80% power, 5% level).",
        ]

    def test_nothing_to_warn_of(self):
        assert warnings([result("A", UP)], strategy=MAIN, failures=0) == []

    def test_controls_are_left_to_the_tables(self):
        results = [result("A", UP), result("A", FLAT, strategy="filter"), result("B", FLAT), result("C", FLAT)]
        assert warnings(results, strategy=MAIN, failures=1) == [
            "1 model is missing; the reasons are listed below.",
            "The interval of the overall gain spans zero for B and C: neither a gain nor a loss is shown there.",
        ]

    def test_leakage_that_the_split_should_have_prevented(self):
        leakage = {
            "test": {"annotator_in_train": 0.0002, "prompt_group_in_train": 1.0, "both_responses_in_train": 0.25}
        }
        assert leakage_warnings(leakage, split_by="auto") == [
            "Less than 0.1% of the test pairs are by annotators who also occur in training.",
            "In 25.0% of the test pairs both responses also occur in training pairs: these test new raters, not new "
            "texts.",
        ]
        assert leakage_warnings(leakage, split_by="prompt")[0] == (
            "100.0% of the test pairs have a prompt that also occurs in training."
        )


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((0.001, 0.1), "above"),
        ((0.0, 0.1), "spans"),
        ((-0.1, 0.0), "spans"),
        ((-0.1, -0.001), "below"),
        ((NAN, NAN), "none"),
    ],
)
def test_an_interval_that_touches_zero_spans_it(bounds, expected):
    assert verdict(estimate(0.0, *bounds)) == expected


def test_numbers_as_text():
    assert [points(value) for value in (0.022, -0.041, 0.0, -0.0004, NAN)] == ["+2.2", "−4.1", "0.0", "−0.0", "—"]
    assert [percent(value) for value in (0.614, None, NAN)] == ["61.4%", "—", "—"]
    assert points_interval(estimate(*DOWN)) == "[−5.0, −1.2]"
    assert percent_interval(estimate(0.6, 0.55, 0.65)) == "[55.0, 65.0]"
    assert points_interval(estimate(*LONE)) == "—"
    assert [duration(seconds) for seconds in (2.17, 93.4, 7260, None)] == ["2.2 s", "1 min 33 s", "2 h 1 min", "—"]


def test_results_are_ordered_by_the_main_strategys_gain():
    def row(arm: str, community: str, value: float) -> dict:
        entry = {"community": community, "arm": arm, "metric": "overall_gain", "value": value}
        return entry | {"low": NAN, "high": NAN, "num_pairs": 1, "num_clusters": 1}

    rows = [row(strategy, name, gain) for strategy, sign in (("none", -1), ("filter", 1))
            for name, gain in (("x/y", NAN), ("a", -0.1 * sign), ("b", 0.1 * sign))]  # fmt: skip
    found = results_from(rows, strategies=("filter", "none"), kept={}, cluster_units={})
    assert [(entry.community, entry.strategy) for entry in found] == [
        (community, strategy) for community in ("b", "a", "x/y") for strategy in ("filter", "none")
    ]
