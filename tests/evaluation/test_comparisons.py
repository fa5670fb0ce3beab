"""Arms against arms."""

import math

import numpy as np
import pytest

from scpo_ray.config import EvaluateConfig
from scpo_ray.core.hypothesis import holm
from scpo_ray.evaluation.comparisons import comparison_rows
from tests.evaluation.pair_sets import pair_set

CONFIG = EvaluateConfig(num_resamples=500)


def rows_for(differences: dict[str, np.ndarray]) -> list[dict]:
    """`none` against `global`, which is always wrong, in communities with these correctness values."""
    correct = {(name, "overall"): {"global": [np.zeros(len(v))], "none": [v]} for name, v in differences.items()}
    pairs = {(name, "overall"): pair_set((1.0,) * len(v), name=name) for name, v in differences.items()}
    return comparison_rows(correct, pairs, ["global", "random"], CONFIG, seed=0)


def test_by_hand():
    """Four annotators, all better: of 16 sign patterns two reach 4."""
    (row,) = rows_for({"Here": np.ones(4)})
    assert (row["arm"], row["against"], row["difference"]) == ("none", "global", 1.0)
    assert row["p_value"] == row["p_holm"] == 2 / 16
    assert (row["num_pairs"], row["num_clusters"]) == (4, 4)
    assert math.isnan(row["detectable"]), "four annotators can show nothing at 5%"


def test_the_family_is_everything_compared_with_the_same_arm():
    found = rows_for({"A": np.ones(8), "B": np.array([1.0, 0, 0, 0, 0, 0, 0, 0]), "C": np.zeros(5)})
    assert [row["p_value"] for row in found] == [2 / 256, 1.0, 1.0]
    assert [row["p_holm"] for row in found] == holm([2 / 256, 1.0, 1.0])
    assert all(row["against"] == "global" for row in found), "no community has the random control"


@pytest.mark.parametrize("metric", ["overall", "majority"])
def test_metrics_are_families_of_their_own(metric):
    correct = {("A", name): {"global": [np.zeros(8)], "none": [np.ones(8)]} for name in ("overall", "majority")}
    pairs = {key: pair_set((1.0,) * 8) for key in correct}
    (row,) = [row for row in comparison_rows(correct, pairs, ["global"], CONFIG, seed=0) if row["metric"] == metric]
    assert row["p_holm"] == row["p_value"] == 2 / 256


def test_seed_noise_is_that_of_the_difference():
    """Three seeds; `none` gains 1, 0 and 0.5 of 2 pairs over `global`, and always half a pair's worth less than `filter`."""
    seeds = [np.array([1.0, 1.0]), np.array([0.0, 0.0]), np.array([1.0, 0.0])]
    correct = {
        ("A", "overall"): {
            "global": [np.zeros(2)],
            "none": seeds,
            "filter": [values + 0.25 for values in seeds],
            "random": seeds[:2],
        }
    }
    found = comparison_rows(correct, {("A", "overall"): pair_set((1.0, 1.0))}, ["global", "none"], CONFIG, seed=0)
    sd = {(row["arm"], row["against"]): row["seed_sd"] for row in found}
    assert sd["none", "global"] == pytest.approx(0.5)
    assert sd["filter", "none"] == pytest.approx(0.0)
    assert sd["random", "none"] is None, "other seeds cannot be paired"


def test_no_correction_can_hide_every_effect():
    """The defaults' smallest p, times a family of 9 arms in 40 communities, is still below 5%."""
    assert 9 * 41 / (EvaluateConfig().num_permutations + 1) < 0.05
