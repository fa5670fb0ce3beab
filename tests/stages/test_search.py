"""What a search refuses before it trains, and what it notes of trials that end without a word."""

from types import SimpleNamespace

import numpy as np
import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.errors import DataError
from scpo_ray.stages.search import _check_objectives
from scpo_ray.stages.trials import _Records
from scpo_ray.tuning.objectives import ValidationPairs
from scpo_ray.tuning.records import TrialStore

ALL_RIGHT = ValidationPairs("Brevia", np.array([False, False]))
MIXED = ValidationPairs("Calder Isles", np.array([True, False]))


@pytest.mark.parametrize("objective", ["acquisition", "balanced"])
def test_an_objective_that_no_model_can_have_is_refused(objective):
    """Nobody has a pair that the global model gets wrong; one community that has is enough."""
    with pytest.raises(DataError, match=rf"tune\.objectives: {objective}: of no community's .* get any wrong"):
        _check_objectives(["overall", objective], {"Brevia": ALL_RIGHT})
    _check_objectives(["overall", objective], {"Brevia": ALL_RIGHT, "Calder Isles": MIXED})


def test_retention_needs_pairs_that_the_global_model_gets_right():
    with pytest.raises(DataError, match=r"retention: of no community's .* get any right"):
        _check_objectives(["retention"], {"Brevia": ValidationPairs("Brevia", np.array([True]))})
    _check_objectives(["overall", "majority", "retention"], {"Brevia": ALL_RIGHT})


def test_a_trial_whose_process_dies_is_interrupted_once(tmp_path):
    """A record of its own is left alone; without one, its point and the reason are kept for the next run."""
    store = TrialStore(RunDirectory(str(tmp_path)), "search")
    ended = []
    records = _Records(store, [{"train.learning_rate": 0.1}, {"train.learning_rate": 0.2}], lambda: ended.append(1))
    dead = SimpleNamespace(
        config={"number": 1}, get_error=lambda: RuntimeError("Traceback ...\nActorDiedError: killed")
    )
    for _ in range(2):
        records.on_trial_error(0, [], dead)
    (found,) = store.all()
    assert (found.point, found.state) == ({"train.learning_rate": 0.2}, "interrupted")
    assert found.error == "the trial's process ended: ActorDiedError: killed"
    assert len(ended) == 2
