"""Searches on real Ray Tune with real trainings of tiny models: what they find, what they repeat, and how they fail."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import dump_yaml, load_config
from scpo_ray.config import Config
from scpo_ray.errors import ArtifactError, ConfigError, DataError, TrainingError
from scpo_ray.stages import pipeline, tune
from scpo_ray.stages.scoring_job import ModelToScore, score_models
from scpo_ray.stages.search import AUTO, DEFAULT, Search
from scpo_ray.stages.train import load_trained
from scpo_ray.stages.trial import TrialRun
from scpo_ray.tuning.records import TrialRecord, TrialStore
from tests.conftest import FINISHED, TINY

TAU, RATE = "select.agreement_threshold", "train.learning_rate"
LIMIT_S = 240
pytestmark = pytest.mark.timeout(LIMIT_S)


@pytest.fixture(scope="module")
def scored(finished_run, tmp_path_factory) -> Path:
    """A run directory up to the scores: what every search here starts from."""
    made = Path(finished_run.run_dir)
    run_dir = tmp_path_factory.mktemp("scored") / "run"
    for name in ("prepared", "global_model", "scores"):
        shutil.copytree(made / name, run_dir / name)
    shutil.copytree(made.parent / "score_cache", run_dir.parent / "score_cache")
    return run_dir


def config_in(run_dir: Path, **changes: object) -> Config:
    """Two thresholds and two learning rates, one of which learns nothing; a step or two per trial."""
    search = {
        "space": {TAU: {"choice": [0.6, 0.9]}, RATE: {"choice": [1e-12, 1e-3]}},
        "search": "grid",
        "num_trials": 4,
    }
    sections = {
        "score": FINISHED["score"],
        "select": {"strategy": "filter_weight"},
        "train": {"epochs": 2, "max_steps": 4, "evaluations_per_epoch": 2},
        "tune": search | changes.pop("tune", {}),
    }
    sections |= changes
    merged = {key: {**TINY.get(key, {}), **sections.get(key, {})} for key in {*TINY, *sections}}
    return Config(run_dir=str(run_dir), **merged)


def copied(run_dir: Path, place: Path) -> Path:
    """A run directory of a test's own, with the scores' cache that lies beside it."""
    shutil.copytree(run_dir, place / "runs" / "run")
    shutil.copytree(run_dir.parent / "score_cache", place / "runs" / "score_cache")
    return place / "runs" / "run"


@pytest.fixture
def config(scored, tmp_path):
    """Makes configs of a scored run directory in which nothing was searched."""
    run_dir = copied(scored, tmp_path)
    return lambda **changes: config_in(run_dir, **changes)


@dataclass
class Searched:
    """A search of three trials that was then continued to four."""

    config: Config
    early: list[TrialRecord]
    started: list[list[str]]
    """Digests of the trials that each of three equal calls, the second and third for four trials, started by itself."""


@pytest.fixture(scope="module")
def searched(scored, tmp_path_factory) -> Searched:
    run_dir = copied(scored, tmp_path_factory.mktemp("searched"))
    with pytest.MonkeyPatch.context() as patch:
        names: list[str] = []
        start = TrialRun.start
        patch.setattr(TrialRun, "start", lambda run: (names.append(run.digest), start(run)))
        started = []
        for number in (3, 4, 4):
            tune.run(config_in(run_dir, tune={"num_trials": number}))
            started.append(names.copy())
            names.clear()
            if number == 3:
                early = records_of(config_in(run_dir))
    return Searched(config_in(run_dir), early, started)


def records_of(config: Config) -> list[TrialRecord]:
    return TrialStore(RunDirectory(config.run_dir), config.tune.name).all()


def test_a_grid_tries_every_point_and_the_best_can_be_run(searched, tmp_path):
    config = searched.config
    made = Search(config, RunDirectory(config.run_dir)).manifest
    trials = RunDirectory(config.run_dir).read_table("tune/search/result/trials.parquet").to_pylist()
    assert {(row[TAU], row[RATE]) for row in trials} == {(0.6, 1e-12), (0.6, 1e-3), (0.9, 1e-12), (0.9, 1e-3)}
    assert made.statistics["num_trials"] == made.statistics["finished"] == 4
    still = [row for row in trials if row[RATE] == 1e-12]
    assert all((row["acquisition"], row["retention"]) == (0.0, 1.0) for row in still), "the global model itself"
    assert len({row["overall"] for row in still}) == 1
    outcome = tune.outcomes(config)["search"]
    assert outcome.best.objectives["overall"] == max(row["overall"] for row in trials)
    experiment = Path(config.run_dir, "tune/search/best.yaml")
    best = load_config(["--config", str(experiment), "--run_dir", str(tmp_path / "new")])
    assert best.select.agreement_threshold == outcome.best.point[TAU]
    assert best.train.learning_rate == outcome.best.point[RATE]
    assert best.train.max_steps == 4 and best.prepare == config.prepare and not best.tune.space
    assert "search: 4 trials" in tune.summary(config)


def test_more_trials_go_on_and_nothing_is_trained_twice(searched):
    assert [record.state for record in searched.early] == ["finished"] * 3
    assert records_of(searched.config)[:3] == searched.early
    baselines = searched.started[0]
    assert len(baselines) == 2, "the settings as configured, and auto"
    assert searched.started[1:] == [[], []]
    left = {path.name for path in Path(searched.config.run_dir, "tune/search/data").iterdir()}
    assert left == {"prepared"}, "what trials needed while they ran is gone"


def test_baselines_are_trials_of_their_own(searched):
    outcome = tune.outcomes(searched.config)["search"]
    assert set(outcome.baselines) == {DEFAULT, AUTO}
    assert outcome.baselines[DEFAULT].state == "finished"
    assert outcome.baselines[DEFAULT].constants["Brevia"]["agreement_threshold"] == 0.7
    found = outcome.baselines[AUTO]
    assert found.state == "failed" or 0.5 < found.constants["Brevia"]["agreement_threshold"] < 1
    assert np.isfinite(outcome.baselines[DEFAULT].objectives["overall"])


def test_what_a_trial_measures_is_what_the_trained_model_does(searched, tmp_path):
    """By another way: the pipeline with this point, its models scored by the stages, on the same validation pairs."""
    record = next(record for record in records_of(searched.config) if record.point == {TAU: 0.9, RATE: 1e-3})
    same = config_in(
        copied(Path(searched.config.run_dir), tmp_path),
        select={"agreement_threshold": 0.9},
        train={"epochs": 2, "max_steps": 4, "evaluations_per_epoch": 2, "learning_rate": 1e-3},
    )
    pipeline.run(same)
    run = RunDirectory(same.run_dir)
    assert 'href="tune/search/result/tune.html"' in Path(same.run_dir, "report.html").read_text(encoding="utf-8")
    pairs = run.read_table("prepared/pairs.parquet", filters=pc.field("split") == "validation").to_pandas()
    ruler = run.read_table("scores/scores.parquet").to_pandas().set_index("response_id").reward
    ids = pc.unique(run.read_table("prepared/responses.parquet")["response_id"])
    models = [
        ModelToScore(name.community, str(run.fetch(made.name)), ids) for name, made in load_trained(same, run).items()
    ]
    tables, _ = score_models(models, same)
    for community, table in tables.items():
        reward = table.to_pandas().set_index("response_id").reward
        own = pairs[pairs.community == community]
        correct = (reward[own.chosen_id].to_numpy() > reward[own.rejected_id].to_numpy()).astype(float)
        is_wrong = ruler[own.chosen_id].to_numpy() < ruler[own.rejected_id].to_numpy()
        majority = pairs[pairs.community == "Atlas"]
        kept = (reward[majority.chosen_id].to_numpy() > reward[majority.rejected_id].to_numpy()).mean()
        expected = {
            "overall": correct.mean(),
            "acquisition": correct[is_wrong].mean(),
            "retention": correct[~is_wrong].mean(),
            "majority": kept,
        }
        for metric, value in expected.items():
            assert record.by_community[community][metric] == pytest.approx(value, abs=1e-6), metric


def test_a_trial_cannot_reach_test_pairs(searched):
    run = RunDirectory(searched.config.run_dir)
    prepared = run.read_table("prepared/pairs.parquet").to_pandas()
    test = prepared[prepared.split == "test"]
    elsewhere = prepared[prepared.split != "test"]
    inputs = Search(searched.config, run)._inputs(queue=None)
    folder = f"{run.absolute_address}/tune"
    assert inputs.config.run_dir == inputs.data.absolute_address == f"{folder}/search/data"
    assert inputs.store._directory.absolute_address == folder, "no way leads to the run's own pairs"
    assert inputs.config.prepare == Config().prepare, "nor to their source"
    assert set(inputs.pairs["split"].to_pylist()) == {"train", "validation"}
    secret = (set(test.chosen_id) | set(test.rejected_id)) - set(elsewhere.chosen_id) - set(elsewhere.rejected_id)
    files = [path for path in Path(inputs.config.run_dir).rglob("*") if path.is_file()]
    assert secret and files
    content = pickle.dumps(inputs)
    assert not any(identifier.encode() in content for identifier in [*secret, *test.pair_id])
    for path in files:
        content = path.read_bytes() if path.suffix != ".parquet" else str(pq.read_table(path).to_pylist()).encode()
        for identifier in [*secret, *test.pair_id]:
            assert identifier.encode() not in content, path


def test_another_space_needs_another_name_and_finds_what_was_finished(searched, tmp_path):
    run_dir = copied(Path(searched.config.run_dir), tmp_path)
    other = {"space": {TAU: {"choice": [0.6, 0.8]}, RATE: {"choice": [1e-12, 1e-3]}}, "num_trials": 4}
    with pytest.raises(ArtifactError, match=r"made with .*tune\.space"):
        tune.run(config_in(run_dir, tune=other))
    with pytest.raises(ArtifactError, match=r"made with .*tune\.per_community"):
        tune.run(config_in(run_dir, tune={"per_community": True}))
    assert Path(run_dir, "tune/search/best.yaml").exists()
    named = config_in(run_dir, tune=other | {"name": "second"})
    tune.run(named)
    known = {record.digest: record for record in records_of(searched.config)}
    for record in records_of(named):
        assert (record.digest in known) == (record.point[TAU] == 0.6)
        if record.digest in known:
            assert record == known[record.digest]


def test_one_job_at_a_time_is_in_a_search(searched, monkeypatch):
    class TookATurn(Exception):
        pass

    def taken(directory, stage, checkpoint_dir, *, of):
        raise TookATurn(directory.address, stage, checkpoint_dir, of)

    monkeypatch.setattr(tune, "turn", taken)
    run_dir, unfinished = searched.config.run_dir, searched.config.train.checkpoint_dir
    for name in ("search", "another"):
        with pytest.raises(TookATurn) as raised:
            tune.run(config_in(Path(run_dir), tune={"name": name}))
        assert raised.value.args == (run_dir, "tune", unfinished, [name])


def test_several_objectives_make_a_front(config):
    objectives = {"objectives": ["acquisition", "retention"], "criterion": "maximin", "search": "tpe"}
    tune.run(config(tune=objectives))
    outcome = tune.outcomes(config(tune=objectives))["search"]
    values = [(record.objectives["acquisition"], record.objectives["retention"]) for record in outcome.front]
    for one in values:
        assert not any(a >= one[0] and b >= one[1] and (a, b) != one for a, b in values)
    assert outcome.best in outcome.front


class TestFailures:
    def test_a_trial_that_raises_is_recorded_and_the_search_goes_on(self, config):
        """A threshold that leaves fewer pairs than `min_pairs`, and a rate that makes the loss infinite."""
        space = {TAU: {"choice": [0.01, 0.9]}, RATE: {"choice": [1e-3, 1e30]}}
        made = tune.run(config(tune={"space": space}))["search"]
        assert made.statistics["finished"] == 1 and made.statistics["failed"] == 3
        errors = {(r.point[TAU], r.point[RATE]): r.error for r in records_of(config(tune={"space": space}))}
        assert "training pairs left after selection" in errors[0.01, 1e-3]
        assert "is nan at step" in errors[0.9, 1e30] or "is inf at step" in errors[0.9, 1e30]
        assert errors[0.9, 1e-3] == ""
        assert "3 trials failed, e.g." in tune.summary(config(tune={"space": space}))

    def test_a_search_in_which_every_trial_fails(self, config):
        space = {TAU: {"choice": [0.01, 0.02]}}
        with pytest.raises(
            TrainingError, match=r"none of 2 trials was finished: .*training pairs left after selection"
        ):
            tune.run(config(tune={"space": space}))

    def test_workers_that_the_cluster_cannot_hold_are_refused_before_anything_is_made(self, ray_cluster, tmp_path):
        wrong = config_in(tmp_path / "run", train={"num_workers": 64})
        with pytest.raises(TrainingError, match="training workers need 64 CPU, the cluster has"):
            tune.run(wrong)
        assert not Path(wrong.run_dir).exists()

    def test_an_unknown_key_stops_before_anything_is_made(self, config):
        wrong = config(tune={"space": {"select.tau": {"choice": [0.1, 0.2]}}})
        with pytest.raises(ConfigError, match=r"tune\.space\.select\.tau: unknown key"):
            tune.run(wrong)
        assert not Path(wrong.run_dir, "tune").exists()

    def test_no_validation_pairs_stops_before_the_global_model_is_trained(self, tiny_config):
        without = tiny_config(prepare={"validation_fraction": 0.0}, tune={"space": {TAU: {"choice": [0.6, 0.9]}}})
        with pytest.raises(DataError, match="no validation pairs to judge trials by"):
            tune.run(without)
        assert not Path(without.run_dir, "global_model").exists()

    def test_a_time_budget_that_is_too_short(self, config):
        began = time.monotonic()
        with pytest.raises(TrainingError, match="the time budget ended before the first"):
            tune.run(config(tune={"time_budget_s": 0.01}))
        assert time.monotonic() - began < LIMIT_S / 2
        assert len(records_of(config())) < 4


@pytest.mark.parametrize("stopping", ["asha", pytest.param("median", marks=pytest.mark.slow)])
def test_what_lags_behind_is_stopped(config, stopping):
    """Three rates that learn nothing retain everything; the fourth, tried last, forgets."""
    space = {RATE: {"choice": [1e-12, 2e-12, 3e-12, 3e-2]}}
    search = {"space": space, "num_trials": 4, "stopping": stopping, "max_concurrent": 1, "objectives": ["retention"]}
    trains = {"epochs": 4, "max_steps": 8, "evaluations_per_epoch": 2}
    made = tune.run(config(tune=search, train=trains))["search"]
    records = records_of(config(tune=search, train=trains))
    assert {record.point[RATE]: record.state for record in records} == {
        1e-12: "finished",
        2e-12: "finished",
        3e-12: "finished",
        3e-2: "stopped",
    }
    assert [record.objectives["retention"] for record in records[:3]] == [1.0] * 3
    assert (made.statistics["finished"], made.statistics["stopped"]) == (3, 1)


@pytest.mark.slow  # tests/chaos kills the same, and more
def test_a_killed_driver_repeats_no_finished_trial(config, tmp_path):
    """-9 when a third of the trials is there; the rerun makes the rest and leaves the first ones as they were."""
    config = config(tune={"space": {TAU: {"choice": [0.6, 0.8, 0.9]}}, "num_trials": 3, "max_concurrent": 1})
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    command = [sys.executable, "jobs/tune.py", "--config", str(file)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    folder = Path(config.run_dir, "tune/search/trials")
    try:
        while not list(folder.glob("*.json")):
            assert driver.poll() is None, "it ended before it could be killed"
            time.sleep(0.2)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    before = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    assert 1 <= len(before) < 3
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    after = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    assert len(after) == 3
    assert {name: after[name] for name in before} == before
    assert "search: 3 trials" in done.stdout


def test_each_community_by_itself(config, tmp_path):
    """A search per community on the same workers; the experiment has each community's own point."""
    search = {"per_community": True, "num_trials": 2}
    made = tune.run(config(tune=search))
    assert len(made) == 2 and all(manifest.statistics["finished"] == 2 for manifest in made.values())
    best = {
        next(iter(outcome.best.by_community)): outcome.best for outcome in tune.outcomes(config(tune=search)).values()
    }
    assert set(best) == {"Brevia", "Calder Isles"}
    assert all(set(record.by_community) == {name} for name, record in best.items())
    experiment = Path(config().run_dir, "tune/search/best.yaml")
    found = load_config(["--config", str(experiment), "--run_dir", str(tmp_path / "new")])
    for name, record in best.items():
        assert found.per_community[name] == record.point
        assert found.for_community(name).train.learning_rate == record.point[RATE]
        assert found.for_community(name).select.agreement_threshold == record.point[TAU]
    assert found.select.agreement_threshold == 0.7, "the others keep what was configured"
