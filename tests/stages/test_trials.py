"""TPE as a search uses it: no point twice, and what a stopped trial had reached is no result."""

import math

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from scpo_ray.config import TuneConfig
from scpo_ray.stages.trials import importance, study_of, tpe
from scpo_ray.tuning.records import TrialRecord

TAU, RATE = "select.agreement_threshold", "train.learning_rate"
SPACE = {TAU: {"uniform": [0.5, 0.7], "step": 0.1}, RATE: {"choice": [1e-4, 1e-3]}}


def record(tau: float, rate: float, state: str = "finished", overall: float = 0.6) -> TrialRecord:
    return TrialRecord(f"{tau}{rate}", {TAU: tau, RATE: rate}, state, {"overall": overall} if state != "failed" else {})


def test_no_point_is_tried_twice_and_a_small_space_ends():
    algorithm = tpe(TuneConfig(space=SPACE, num_trials=20), [record(0.5, 1e-4), record(0.6, 1e-3)], seed=0)
    found = []
    while (point := algorithm.suggest(str(len(found)))) != Searcher.FINISHED:
        algorithm.on_trial_complete(str(len(found)), {"overall": 0.5 + point[TAU] / 10, "is_finished": True})
        found.append((round(point[TAU], 9), point[RATE]))
    assert sorted(found) == [(0.5, 1e-3), (0.6, 1e-4), (0.7, 1e-4), (0.7, 1e-3)]


def test_tpe_goes_where_it_was_good_before():
    """Of what is known, low values were better: more than half of the next ten points are in the lowest third."""
    config = TuneConfig(space={TAU: {"uniform": [0.5, 0.95]}}, num_trials=30)
    known = [
        TrialRecord(str(i), {TAU: tau}, "finished", {"overall": 1 - tau})
        for i, tau in enumerate([0.52, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93])
    ]
    algorithm = tpe(config, known, seed=0)
    low = 0
    for number in range(10):
        tau = algorithm.suggest(str(number))[TAU]
        algorithm.on_trial_complete(str(number), {"overall": 1 - tau, "is_finished": True})
        low += tau < 0.65
    assert low > 5


def test_what_a_stopped_trial_had_reached_is_no_value():
    """One community of two, 95%: it must not become the best of the study, in a new process or in the same."""
    records = [record(0.5, 1e-4, overall=0.7), record(0.6, 1e-4, "stopped", 0.95), record(0.7, 1e-4, "failed")]
    records += [record(0.5, 1e-3, "interrupted", 0.99), record(0.6, 1e-3, overall=math.nan)]
    config = TuneConfig(space=SPACE)
    study = study_of(config, records)
    assert study.best_value == 0.7
    assert [trial.state for trial in study.trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.FAIL,
        TrialState.FAIL,
    ]
    algorithm = tpe(config, records[:1], seed=0)
    algorithm.suggest("stopped")
    algorithm.on_trial_complete("stopped", {"overall": 0.95, "is_finished": False})
    assert algorithm._ot_study.best_value == 0.7


def test_importance_is_of_the_setting_that_matters():
    config = TuneConfig(space=SPACE)
    records = [record(tau, rate, overall=tau) for tau in (0.5, 0.6, 0.7) for rate in (1e-4, 1e-3)] * 2
    found = importance(config, records)
    assert list(found) == [TAU, RATE] and found[TAU] == pytest.approx(1, abs=0.05)
    assert importance(config, records[:4]) == {}, "too few trials"
