"""Jobs that share the communities of a run among them: none removes, forgets or breaks what another is at."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.stages import asked, recipes, train
from scpo_ray.training.task import checkpoints_of

ONE, OTHER = "Brevia", "Calder Isles"


@pytest.fixture
def config(finished_run, tmp_path) -> Config:
    shutil.copytree(finished_run.run_dir, tmp_path / "run")
    return finished_run.model_copy(update={"run_dir": str(tmp_path / "run")})


def unfinished(config: Config, community: str, *, of: str = "", **identity: object) -> Path:
    """A checkpoint of a community's training, by these settings or others, of this run or another."""
    directory, place = RunDirectory(config.run_dir), config.train.checkpoint_dir
    named = (each for each in train.model_names(config, directory) if each[1].community == community)
    recipe = recipes.reward_model(config, directory, *next(named))
    recipe = replace(recipe, identity={**recipe.identity, **identity})
    folder = checkpoints_of(recipe, "checkpoints", run_address=of or config.run_dir, place=place)
    (folder / "step_00000004").mkdir(parents=True)
    return folder


def test_a_job_removes_what_its_models_need_no_more_and_nothing_else(config):
    given_up = unfinished(config, ONE, **{"train.learning_rate": 7.0})
    others = unfinished(config, OTHER)
    outcome = train.run(config.with_settings({"train.communities": (ONE,)}))
    assert {name.community for name in outcome.trained} == {ONE} and not outcome.made
    assert not given_up.exists() and (others / "step_00000004").is_dir()
    train.run(config)
    assert not others.parent.exists()


def test_runs_that_share_a_disk_keep_apart(config, tmp_path):
    config = config.with_settings({"train.checkpoint_dir": str(tmp_path / "disk")})
    own, of_another = unfinished(config, ONE), unfinished(config, ONE, of="s3://bucket/another")
    assert own != of_another
    train.run(config)
    assert not own.exists() and (of_another / "step_00000004").is_dir()


def test_jobs_of_a_part_add_to_what_was_asked_for_and_one_of_all_replaces_it(tmp_path):
    run = RunDirectory(str(tmp_path))
    asked.write(run, "train", ["m/A", "m/B"], {"m/A": "died"}, checkpoint_dir=None, adds=True)
    asked.write(run, "train", ["m/C"], {}, checkpoint_dir=None, adds=True)
    assert asked.read(run, "train") == (["m/A", "m/B", "m/C"], {"m/A"})
    asked.write(run, "train", ["m/B", "m/A"], {"m/B": "died"}, checkpoint_dir=None, adds=True)
    assert asked.read(run, "train") == (["m/C", "m/B", "m/A"], {"m/B"})
    assert json.loads((tmp_path / "training.json").read_text())["failed"] == {"m/B": "died"}
    asked.write(run, "train", ["m/D"], {}, checkpoint_dir=None, adds=False)
    assert asked.read(run, "train") == (["m/D"], set())
    (tmp_path / "training.json").write_text("{")
    asked.write(run, "train", ["m/A"], {}, checkpoint_dir=None, adds=True)
    assert asked.read(run, "train") == (["m/A"], set())
    assert [path.name for path in tmp_path.iterdir()] == ["training.json"]


PUBLISH = """
import sys
from scpo_ray.artifacts import Recipe, RunDirectory
run = RunDirectory(sys.argv[1])
for number in range(200):
    with Recipe("artifact", "stage", {}, {}, 0).making(run) as draft:
        draft.write_json("value.json", [sys.argv[2], number] * 100)
"""


def test_an_artifact_that_two_make_at_once_is_one_of_theirs(tmp_path):
    """Where there is no lock, as on file systems that have none."""
    commands = [[sys.executable, "-c", PUBLISH, str(tmp_path), name] for name in "ab"]
    makers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for maker in makers:
        _, said = maker.communicate(timeout=120)
        assert maker.returncode == 0, said
    run = RunDirectory(str(tmp_path))
    assert run.find("artifact") is not None
    name, number, *_ = run.read_json("artifact/value.json")
    assert (name, number) in {("a", 199), ("b", 199)}
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
