"""Metrics of models whose rewards are written by hand."""

import math

import numpy as np
import pyarrow as pa
import pytest

from scpo_ray.config import EvaluateConfig
from scpo_ray.core.calibration import fit_temperature
from scpo_ray.errors import DataError
from scpo_ray.evaluation.comparisons import compare
from scpo_ray.evaluation.measures import Measurer, diagnostics, longer_wins
from scpo_ray.evaluation.pairs import pooled, response_lengths
from scpo_ray.records import SCORES, table
from scpo_ray.stages.evaluate import check_test_pairs
from tests.evaluation.pair_sets import pair_set, rewards_with, scores_of

CONFIG = EvaluateConfig(num_resamples=200)
RULER = (1.0, 2.0, -1.0, -2.0, -0.5)  # right, right, wrong, wrong, wrong
MODEL = (1.0, -1.0, 1.0, 0.0, -3.0)  # right, wrong, right, tie, wrong


def values(rows: list[dict]) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in rows}


def measure(arm: str, *margins, majority=(1.0, -1.0)) -> list[dict]:
    own, of_majority = pair_set(RULER), pair_set((3.0, 3.0), name="Majority")
    correct = [own.correct(scores_of(rewards_with(one))) for one in margins]
    lost = [of_majority.correct(scores_of(rewards_with(majority))) for _ in margins]
    return Measurer(own, of_majority, CONFIG, seed=0).rows(arm, own=correct, majority=lost)


def test_every_metric_by_hand():
    found = values(measure("filter_weight", MODEL))
    assert found == pytest.approx(
        {
            "overall": 2.5 / 5,
            "acquisition": 1.5 / 3,
            "retention": 1 / 2,
            "matched_length": 2.5 / 5,
            "balanced": (1.5 / 3 + 1 / 2) / 2,
            "overall_gain": (2.5 - 2) / 5,
            "majority": 0.5,
            "majority_gain": -0.5,
        }
    )


def test_the_global_model_by_construction():
    found = values(measure("global", RULER))
    assert (found["acquisition"], found["retention"], found["balanced"]) == (0.0, 1.0, 0.5)
    (balanced,) = [row for row in measure("global", RULER) if row["metric"] == "balanced"]
    assert (balanced["low"], balanced["high"]) == (0.5, 0.5), "whatever share of a resample it gets right"
    assert "overall_gain" not in found and "majority_gain" not in found
    flipped = values(measure("filter", tuple(-margin for margin in RULER)))
    assert (flipped["acquisition"], flipped["retention"], flipped["balanced"]) == (1.0, 0.0, 0.5)


def test_replicates_are_averaged_and_their_spread_is_told_apart():
    always, never = (1.0,) * 5, (-1.0,) * 5
    (overall,) = [row for row in measure("none", always, never) if row["metric"] == "overall"]
    assert (overall["value"], overall["num_seeds"]) == (0.5, 2)
    assert overall["seed_sd"] == pytest.approx(math.sqrt(0.5))
    assert (overall["low"], overall["high"]) == (0.5, 0.5), "no pair differs from another once seeds are averaged"
    (alone,) = [row for row in measure("none", always) if row["metric"] == "overall"]
    assert alone["seed_sd"] is None


def test_intervals_draw_annotators_not_pairs():
    """Ten pairs of two annotators: one always right, one always wrong."""
    own = pair_set((1.0,) * 10, annotators=["x"] * 5 + ["y"] * 5)
    correct = [own.correct(scores_of(rewards_with((1.0,) * 5 + (-1.0,) * 5)))]
    (overall,) = [
        row
        for row in Measurer(own, own, CONFIG, seed=0).rows("none", own=correct, majority=correct)
        if row["metric"] == "overall"
    ]
    assert (overall["low"], overall["high"], overall["num_clusters"]) == (0.0, 1.0, 2)


def test_nothing_that_the_global_model_gets_wrong():
    own = pair_set((1.0, 2.0))
    correct = [own.correct(own.global_scores)]
    rows = Measurer(own, own, CONFIG, seed=0).rows("none", own=correct, majority=correct)
    (acquisition,) = [row for row in rows if row["metric"] == "acquisition"]
    assert math.isnan(acquisition["value"]) and acquisition["num_pairs"] == 0
    assert "balanced" not in values(rows)


def test_beside_full_fine_tuning_pairs_are_compared_one_by_one():
    """MODEL is right in 2.5 of 5; full fine-tuning, mean over two seeds, in (5 + 0) / 2: half of each pair."""
    own = pair_set(RULER)
    full = [np.ones(5), np.zeros(5)]
    correct = [own.correct(scores_of(rewards_with(MODEL)))]
    measurer = Measurer(own, own, CONFIG, seed=0)
    rows = values(measurer.rows("filter_weight", own=correct, majority=correct, full=full))
    assert rows["overall_beside_full"] == pytest.approx(0.0)
    assert "overall_beside_full" not in values(measurer.rows("none", own=correct, majority=correct))


def test_a_response_that_was_cut_counts_once():
    """Five pairs over ten responses, of which the model saw one cut; other responses do not count."""
    scores = scores_of(rewards_with(MODEL) | {"elsewhere": 0.0}).to_pylist()
    for row in scores:
        row["truncated"] = row["response_id"] in ("c0", "elsewhere")
    test = pair_set(RULER)
    assert len(test) == 5 and test.truncated_share(table(scores, SCORES)) == 0.1
    assert math.isnan(pair_set(()).truncated_share(table(scores, SCORES)))


def test_diagnostics_by_hand():
    test, validation = pair_set(RULER), pair_set((1.0, 2.0, -1.0))
    found = diagnostics(test, validation, scores_of(rewards_with(MODEL)))
    assert found["mean_margin"] == pytest.approx(-0.4)
    assert found["share_of_ties"] == 0.2 and found["truncated_share"] == 0
    assert found["temperature"] == pytest.approx(fit_temperature(np.array([1.0, -1.0, 1.0])))  # MODEL's on those pairs
    without = diagnostics(test, None, scores_of(rewards_with(MODEL)))
    assert math.isnan(without["temperature"]) and math.isnan(without["calibration_error_at_temperature"])


def test_a_model_that_scores_everything_equal():
    found = diagnostics(pair_set(RULER), None, scores_of(rewards_with((0.0,) * 5)))
    assert (found["share_of_ties"], found["calibration_error"]) == (1.0, 0.0)
    assert math.isnan(found["length_correlation"])
    assert values(measure("none", (0.0,) * 5))["overall"] == 0.5


def test_length_is_that_of_the_response_alone():
    lengths = {f"c{n}": 12 for n in range(5)} | {f"r{n}": 10 + n for n in range(5)}
    longer = pair_set(RULER, lengths=lengths)
    assert longer_wins(longer) == (1 + 1 + 0.5 + 0 + 0) / 5
    correct = [longer.global_correct]
    rows = Measurer(longer, longer, CONFIG, seed=0).rows("global", own=correct, majority=correct)
    (matched,) = [row for row in rows if row["metric"] == "matched_length"]
    assert matched["num_pairs"] == 3  # 12 against 11, 12 and 13
    found = diagnostics(longer, None, scores_of(rewards_with((2.0, 1.0, 0.0, -1.0, -2.0))))
    assert found["length_correlation"] == pytest.approx(1.0)
    texts = pa.table({"response_id": ["x", "y"], "response": ["äöü", "two words"]})
    assert response_lengths(texts)["length"].to_pylist() == [3, 9]


def test_a_reward_that_is_no_number_stops_with_the_pair():
    pairs = pair_set(RULER)
    for broken in (math.nan, math.inf):
        with pytest.raises(DataError, match=r"^Here: 1 of 5 pairs have no finite reward \(the first is p3\)"):
            pairs.margins(scores_of(rewards_with(RULER) | {"c3": broken}))
    missing = rewards_with(RULER)
    del missing["r4"]
    with pytest.raises(DataError, match="the first is p4"):
        pairs.correct(scores_of(missing))


def test_pooled_pairs_keep_their_order_and_annotators():
    first, second = (
        pair_set((1.0,), annotators=["x"], name="A"),
        pair_set((1.0, -1.0), annotators=["x", None], name="B"),
    )
    both = pooled("all", [first, second])
    assert both.table["community"].to_pylist() == ["A", "B", "B"]
    assert both.clusters.tolist() == ["x", "x", "g1"]


def test_nothing_to_measure_is_said_before_anything_is_scored():
    counts = {"Here": 0, "There": 1}
    check_test_pairs(counts, ["Here", "There"], of_majority=1)  # one of two without test pairs stops nobody
    with pytest.raises(DataError, match=r"^Here: no test pairs, nothing to measure; raise prepare\.test_fraction$"):
        check_test_pairs(counts, ["Here"], of_majority=1)
    with pytest.raises(DataError, match=r"^the majority has no test pairs"):
        check_test_pairs(counts, ["There"], of_majority=0)


def test_a_community_without_test_pairs_has_no_figures_and_stops_nobody():
    empty, majority = pair_set(()), pair_set((1.0, -1.0), name="Majority")
    correct = [empty.correct(empty.global_scores)]
    rows = Measurer(empty, majority, CONFIG, seed=0).rows("none", own=correct, majority=[majority.global_correct])
    of_own = [row for row in rows if not row["metric"].startswith("majority")]
    assert of_own and all(math.isnan(row["value"]) and row["num_pairs"] == 0 for row in of_own)
    assert values(rows)["majority"] == 0.5
    assert all(math.isnan(value) for value in diagnostics(empty, None, empty.global_scores).values())
    assert math.isnan(longer_wins(empty))
    row = compare(empty, correct[0], correct[0], CONFIG, seed=0)
    assert math.isnan(row["difference"]) and math.isnan(row["p_value"]) and row["num_pairs"] == 0
