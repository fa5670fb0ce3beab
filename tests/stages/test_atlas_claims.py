"""What the method does on planted truth, over five worlds. The figures that these tests bound are in docs/atlas.md."""

import numpy as np
import pytest

from benchmarks.planted_worlds import World, make_worlds, mean_truth

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def worlds(ray_cluster, tmp_path_factory) -> list[World]:
    """Five worlds with planted outliers, every model with its twin that they did not touch."""
    return make_worlds(str(tmp_path_factory.mktemp("worlds")))


def test_filter_keeps_planted_culture_and_drops_agreement(worlds):
    """At τ = 0.7: 90% of culture kept and 75% of agreement dropped in every world."""
    for world in worlds:
        assert world.decisions["culture"]["kept"] > 0.90
        assert world.decisions["agreement"]["kept"] < 0.25


def test_weighting_takes_weight_from_planted_outliers(worlds):
    """The filter keeps nearly all outliers (they are disagreements); weighting makes them lighter than kept culture."""
    for world in worlds:
        assert world.decisions["outlier"]["kept"] > 0.9
        assert world.decisions["outlier"]["weight"] < world.decisions["culture"]["weight"]


def test_scpo_beats_the_global_model_in_every_community_on_average(worlds):
    for community in worlds[0].gains:
        assert np.mean([world.gains[community] for world in worlds]) > 0.02


def test_filter_only_falls_below_chance_at_this_learning_rate(worlds):
    """Trained on disagreements alone it turns the shared preferences too; SCPO's weights prevent that."""
    assert mean_truth(worlds, "filter") < 0.5
    assert mean_truth(worlds, "filter_weight") > mean_truth(worlds, "global") + 0.05


def test_what_outliers_cost_scpo(worlds):
    """Measured 0.9 points of true accuracy; filter only has nothing left to lose here (docs/atlas.md has milder rates)."""
    assert -0.01 < np.mean([world.harm("filter_weight") for world in worlds]) < 0.025
