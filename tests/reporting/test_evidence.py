"""Words from the tables beside the headline."""

import math

from scpo_ray.reporting.evidence import Evidence


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
        "For no community is the global model less accurate than on the majority's own test pairs. No difference is shown "
        "for Near (interval spans zero)."
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
    assert evidence.num_against("filter_weight") == 2
