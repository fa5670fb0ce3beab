"""Objectives by hand."""

import math

import numpy as np
import pytest

from scpo_ray.tuning.objectives import ValidationPairs, summarize

PAIRS = ValidationPairs("Here", np.array([True, True, False, False, False]))


def test_by_hand():
    found = PAIRS.measure([1.0, -1.0, 2.0, 0.0, -0.5], [1.0, -1.0, 0.0, 1.0])
    assert found == pytest.approx(
        {"overall": 2.5 / 5, "acquisition": 1 / 2, "retention": 1.5 / 3, "balanced": 0.5, "majority": 2.5 / 4}
    )


def test_means_over_communities_and_the_worst():
    rows = {
        "Here": {"overall": 0.8, "acquisition": 0.5, "retention": 0.9, "balanced": 0.7, "majority": 0.6},
        "There": {"overall": 0.6, "acquisition": math.nan, "retention": 0.6, "balanced": math.nan, "majority": 0.8},
    }
    assert summarize(rows) == pytest.approx(
        {
            "overall": 0.7,
            "acquisition": 0.5,
            "retention": 0.75,
            "balanced": 0.7,
            "worst_community": 0.6,
            "majority": 0.7,
        }
    )


def test_a_global_model_that_is_never_wrong_leaves_nothing_to_acquire():
    found = ValidationPairs("Here", np.array([False, False])).measure([1.0, -1.0], [])
    assert math.isnan(found["acquisition"]) and math.isnan(found["balanced"]) and math.isnan(found["majority"])
    assert found["retention"] == 0.5


def test_other_pairs_are_refused():
    with pytest.raises(ValueError, match="Here: 2 margins, 5 validation pairs"):
        PAIRS.measure([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="NaN"):
        PAIRS.measure([1.0, 2.0, 3.0, 4.0, math.nan], [1.0])
