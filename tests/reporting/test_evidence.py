"""Words from the tables beside the headline."""

import math

import pytest

from scpo_ray.core.bootstrap import Estimate
from scpo_ray.reporting.evidence import CurvePoint, Evidence


def distance(community: str, value: float, low: float, high: float, num_pairs: int = 50) -> dict:
    return {"community": community, "value": value, "low": low, "high": high, "num_pairs": num_pairs, "num_clusters": 9}


def test_communities_are_named_by_what_their_interval_says():
    rows = [
        distance("Near", 0.01, -0.02, 0.04),
        distance("Far", 0.2, 0.15, 0.25),
        distance("Farther", 0.301, 0.2, 0.4),
        distance("Closer", -0.1, -0.15, -0.05),
        distance("Alone", 0.5, math.nan, math.nan),
        distance("Empty", math.nan, math.nan, math.nan, num_pairs=0),
    ]
    assert Evidence(distances=rows).distance_words == (
        "The global model is less accurate there than on the majority's test pairs: Farther by 30.1 points [20.0, 40.0], "
        "Far by 20.0 points [15.0, 25.0]. No difference is shown for Near (interval spans zero). It is more accurate for "
        "Closer. Nothing can be said of Alone (no interval). Other preferences lower the accuracy, and so do annotators "
        "who contradict each other."
    )


def test_no_community_differs():
    words = Evidence(distances=[distance("Near", 0.01, -0.02, 0.04)]).distance_words
    assert words == (
        "For no community is it shown that the global model is less accurate than on the majority's own test pairs. No "
        "difference is shown for Near (interval spans zero)."
    )
    assert Evidence().distance_words == ""


def test_a_comparison_is_told_from_either_side():
    row = {"metric": "overall", "community": "Near", "p_value": 0.03, "p_holm": 0.06, "detectable": 0.1}
    tested = row | {"arm": "random", "against": "filter_weight", "difference": 0.02, "low": -0.01, "high": 0.05}
    direct = row | {"arm": "filter_weight", "against": "none", "difference": -0.03, "low": -0.06, "high": 0.0}
    evidence = Evidence(comparisons=[tested, direct])
    (turned,) = evidence.against("random", metric="overall", arm="filter_weight")
    assert (turned["difference"], turned["low"], turned["high"]) == (-0.02, -0.05, 0.01)
    assert (turned["arm"], turned["p_value"], turned["p_holm"]) == ("filter_weight", 0.03, 0.06)
    assert evidence.against("none", metric="overall", arm="filter_weight") == [direct]
    assert evidence.against("none", metric="majority", arm="filter_weight") == []
    assert evidence.num_against(["none", "random", "global"], arm="filter_weight") == 2


def metric(arm: str, community: str, value: float, seed_sd: float | None = None) -> dict:
    row = {"arm": arm, "community": community, "metric": "overall", "value": value, "low": 0.0, "high": 1.0}
    return row | {"num_pairs": 9, "num_clusters": 9, "num_seeds": 1, "seed_sd": seed_sd}


def test_the_worst_community_and_the_gap_to_the_best():
    rows = [metric("none", "A", 0.6), metric("none", "B", 0.75), metric("none", "all communities", 0.5)]
    name, accuracy, gap = Evidence(metrics=rows).worst("none")
    assert (name, accuracy) == ("A", 0.6) and gap == pytest.approx(0.15)
    assert Evidence(metrics=rows[:1]).worst("none") is None


def test_seed_noise_is_that_of_all_communities_together():
    rows = [
        metric("none", "A", 0.6, 0.02),
        metric("none", "B", 0.7, 0.03),
        metric("none", "all communities", 0.65, 0.01),
    ]
    assert Evidence(metrics=rows).seed_sd("none") == 0.01
    assert Evidence(metrics=rows).seed_sd("filter") is None


def point(arm: str, share: float, num_pairs: int, flops: float, accuracy: float, num_seeds: int = 1) -> CurvePoint:
    line = "full fine-tuning" if arm.startswith("none") else "SCPO"
    beside = Estimate(accuracy - 0.62, accuracy - 0.64, accuracy - 0.6, 9, 9)
    estimates = {"overall": Estimate(accuracy, 0, 1, 9, 9), "overall_beside_full": beside}
    return CurvePoint(arm, line, 0.7, share, num_pairs, flops, estimates, num_seeds)


class TestEfficiency:
    FULL = point("none", 1, 400, 8e12, 0.62)

    def test_pairs_and_compute_to_reach_full_fine_tuning(self):
        curve = [
            self.FULL,
            point("filter_weight", 1, 240, 6e12, 0.65),
            point("filter_weight-share-0.5", 0.5, 120, 3e12, 0.63),
        ]
        words = Evidence(curve=[*curve, point("filter_weight-tau-0.5", 1, 50, 1e12, 0.7)]).efficiency
        assert words == (
            "SCPO trains on 60% of the pairs of full fine-tuning, at 75% of its training compute (without scoring the pairs "
            "once). Beside full fine-tuning on all pairs, overall: +1.0 points [−1.0, +3.0] with 120 pairs per community (30%) "
            "and 3.0e+12 FLOP (38%); +3.0 points [+1.0, +5.0] with 240 pairs per community (60%) and 6.0e+12 FLOP (75%). 120 "
            "pairs are shown to come within 3 points of it (interval)."
        )

    def test_never_reached_and_unequal_seeds(self):
        curve = [
            self.FULL,
            point("filter_weight", 1, 240, 6e12, 0.6, 3),
            point("filter_weight-share-0.5", 0.5, 120, 3e12, 0.5),
        ]
        words = Evidence(curve=curve).efficiency
        assert "Full data: means over 3 seeds; smaller shares: one seed each." in words
        assert words.endswith("None of them is shown to come within 3 points of it (interval).")

    def test_nothing_to_compare(self):
        assert Evidence(curve=[self.FULL]).efficiency == ""


VARIANCE = {"between": 0.02, "within": 0.18, "num_votes": 1200, "num_items": 300, "p_value": 0.004}


class TestVariance:
    def words(self, **changes: object) -> str:
        return Evidence(structure={"has_annotators": True, "variance": {**VARIANCE, **changes}}).variance_words

    def test_share_and_verdict(self):
        assert (
            "the community explains 10.0% of the variance of votes, more than chance would (p = 0.004" in self.words()
        )
        assert "no more than chance might (p = 0.400" in self.words(p_value=0.4)
        assert "explains 0.0% of the variance" in self.words(between=-0.001), "no component is below zero"

    def test_what_cannot_be_told(self):
        assert self.words(between=None).endswith(
            "no pair has several votes of two communities, or all votes are alike."
        )
        aggregates = Evidence(structure={"has_annotators": False, "variance": {}}).variance_words
        assert aggregates.endswith("the data are aggregates without annotators.")


def test_a_global_model_without_an_opinion_is_named():
    rows = [
        {"arm": arm, "community": community, "num_at_bound": number}
        for arm, community, number in (("global", "Here", 1), ("global", "There", 0), ("none", "There", 3))
    ]
    assert Evidence(opinions=rows).opinion_words.startswith(
        "For Here no temperature makes the global model's rewards an"
    )
    assert Evidence(opinions=rows[1:]).opinion_words == ""


def test_ties_and_cuts_are_gathered_from_the_diagnostics():
    rows = [
        {"arm": "none", "community": "Here", "replicate": seed, "measure": "share_of_ties", "value": value}
        for seed, value in enumerate((1.0, 0.2, 1.0))
    ]
    rows += [
        {"arm": arm, "community": community, "replicate": 0, "measure": "truncated_share", "value": value}
        for arm, community, value in (("global", "Here", 0.1), ("global", "There", math.nan), ("none", "There", 0.9))
    ]
    assert Evidence(diagnostics=rows).ties == {("none", "Here"): (2, 3)}
    assert Evidence(diagnostics=rows).most_cut == 0.1
    assert Evidence().most_cut == 0.0
