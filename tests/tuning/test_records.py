"""What is kept of trials, and found again."""

from dataclasses import replace

import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.tuning.records import TrialRecord, TrialStore

DONE = TrialRecord("a" * 32, {"train.learning_rate": 0.1}, "finished", {"overall": 0.7}, created_s=1.0)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(str(tmp_path))


def test_records_come_back_as_they_were_oldest_first(run):
    store = TrialStore(run, "search")
    later = replace(
        DONE, digest="b" * 32, point={"train.learning_rate": 0.2}, created_s=2.0, state="failed", error="why"
    )
    store.add(later)
    store.add(DONE)
    assert store.all() == [DONE, later]
    assert TrialStore(run, "other").all() == []


def test_finished_trials_of_other_searches_and_baselines_are_found(run):
    TrialStore(run, "other").add(DONE)
    TrialStore(run, "search/baselines").add(replace(DONE, digest="c" * 32))
    TrialStore(run, "search").add(replace(DONE, digest="d" * 32, state="failed"))
    store = TrialStore(run, "search")
    assert store.finished("a" * 32) == DONE
    assert store.finished("c" * 32) is not None
    assert store.finished("d" * 32) is None and store.finished("e" * 32) is None


def test_an_interrupted_trial_is_no_verdict(run):
    """It waits to be tried again; once it was, whatever its digest, it is there once."""
    store = TrialStore(run, "search")
    store.add(replace(DONE, digest="f" * 32, state="interrupted", error="a worker died"))
    assert [record.is_settled for record in store.all()] == [False]
    store.add(DONE)
    assert store.all() == [DONE]
