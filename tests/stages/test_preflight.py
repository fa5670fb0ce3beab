"""What can never work is refused before an actor starts; what can is planned."""

import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import dump_yaml
from scpo_ray.config import Config
from scpo_ray.errors import ArtifactError, ConfigError, DataError, ModelError, StorageError, TrainingError
from scpo_ray.reporting.numbers import count
from scpo_ray.stages import pipeline, plan, preflight, prepare
from scpo_ray.stages.needs import JOBS, needs_of, reserved
from scpo_ray.stages.plan import estimate
from scpo_ray.stages.policy_plan import make_plan
from scpo_ray.stages.recipes import global_model
from scpo_ray.training.task import checkpoints_of
from tests.conftest import TINY
from tests.refusals import is_at_once
from tests.stages.conftest import GPU_CLUSTER, LAPTOP

ROOT = Path(__file__).parents[2]


def of(tmp_path, **settings) -> Config:
    return Config(run_dir=str(tmp_path / "run"), **settings)


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        (
            "train",
            {"train": {"use_gpu": True, "num_workers": 2}},
            r"train: 2 training workers: 2 GPU needed, 0 there \(this machine\); lower train.num_workers or .* or set "
            r"train.use_gpu to false, or take a larger cluster",
        ),
        (
            "score",
            {"score": {"num_scorers": 5}},
            r"score: 5 scorers: 5 CPU needed, 2 there \(this machine\); lower score.num",
        ),
        (
            "train_global",
            {"train_global": {"cpus_per_worker": 3}},
            r"train_global: 1 training worker: 3 CPU needed, 2 there",
        ),
        (
            "ppo",
            {"ppo": {"gpus_per_engine": 0.5, "num_engines": 2}},
            r"ppo: 2 engines, 1 scorer, 1 learner: 1 GPU needed",
        ),
        ("sft", {"sft": {"num_learners": 3}}, r"sft: 3 learners: 3 CPU needed, 2 there"),
    ],
)
def test_a_stage_that_no_node_can_ever_hold(tmp_path, stage, settings, message):
    with pytest.raises(ConfigError, match=message):
        preflight.check_placement(of(tmp_path, **settings), stage, LAPTOP)


def test_workers_that_may_be_fewer(tmp_path):
    """What must be there is the fewest; what is paid for is all of them."""
    config = of(tmp_path, train={"num_workers": 8, "min_workers": 2})
    preflight.check_placement(config, "train", LAPTOP)
    assert needs_of(config, "train").what == "8 training workers, at least 2"
    assert reserved(config, "train") == {"CPU": 8}
    with pytest.raises(
        ConfigError, match=r"at least 3: 3 CPU needed, 2 there \(this machine\); lower train.min_workers"
    ):
        preflight.check_placement(of(tmp_path, train={"num_workers": 8, "min_workers": 3}), "train", LAPTOP)


def test_a_colocated_bundle_must_fit_one_node(tmp_path):
    ppo = {"placement": "colocated", "cpus_per_engine": 20, "cpus_per_learner": 20, "cpus_per_scorer": 0}
    with pytest.raises(ConfigError, match="40 CPU needed on one node, and no node has it"):
        preflight.check_placement(of(tmp_path, ppo=ppo), "ppo", GPU_CLUSTER)
    apart = of(tmp_path, ppo=ppo | {"placement": "apart"})
    preflight.check_placement(apart, "ppo", GPU_CLUSTER)


def test_every_stage_of_a_small_run_fits_a_laptop(tmp_path):
    for stages in JOBS.values():
        for stage in stages:
            preflight.check_placement(of(tmp_path), stage, LAPTOP)


def test_two_groups_on_two_gpu_nodes_fit(tmp_path):
    config = of(tmp_path, train={"use_gpu": True, "num_workers": 8, "num_worker_groups": 2})
    preflight.check_placement(config, "train", GPU_CLUSTER)
    needs = needs_of(config, "train")
    assert (
        needs is not None and needs.what == "16 training workers" and needs.bundles == ({"CPU": 1.0, "GPU": 1.0},) * 16
    )


def test_a_folder_that_may_not_be_written():
    """Not by root either."""
    with pytest.raises(
        StorageError, match=r"^/proc.*; check that the path exists and may be read and written, then rerun"
    ):
        preflight.check_storage(Config(run_dir="/proc/run"))


def test_a_run_directory_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file: is a file, no folder; check that the path exists"):
        preflight.check_storage(Config(run_dir=str(tmp_path / "file" / "run")))


def test_looking_leaves_nothing_behind(tmp_path):
    preflight.check_storage(of(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_model_that_reads_less_than_is_asked(tmp_path, tiny_reward_model):
    config = of(tmp_path, train_global={"model": str(tiny_reward_model)}, format={"max_tokens": 4096})
    with pytest.raises(ModelError, match=r"train_global.model: .*reads at most 512 tokens, format.max_tokens is 4096"):
        plan.check_model(config, "train_global")


def test_models_from_elsewhere_are_read_before_they_are_compared(tmp_path, tiny_reward_model):
    config = of(tmp_path, evaluate={"models": [str(tiny_reward_model), str(tmp_path)]})
    with pytest.raises(ModelError, match=f"evaluate.models: {tmp_path}"):
        plan.check_model(config, "evaluate")


@pytest.mark.parametrize("job", ["pipeline", "tune", "sft", "ppo"])
def test_folders_of_unfinished_trainings_are_tried(tmp_path, job):
    section = "train" if job in ("pipeline", "tune") else job
    (tmp_path / "file").write_text("no folder")
    config = of(tmp_path, **{section: {"checkpoint_dir": str(tmp_path / "file/checkpoints")}})
    with pytest.raises(StorageError, match=rf"{section}.checkpoint_dir: {tmp_path}/file: is a file, no folder"):
        preflight.check_scratch(config, job)
    with pytest.raises(ConfigError, match=r"checkpoint_dir: unset, and run_dir s3://bucket/run is no path"):
        preflight.check_scratch(Config(run_dir="s3://bucket/run"), job)
    preflight.check_scratch(of(tmp_path, **{section: {"checkpoint_dir": str(tmp_path / "new/checkpoints")}}), job)


@pytest.mark.parametrize("job", ["ppo", "best_of_n"])
def test_policies_need_what_they_are_made_from(prepared, job):
    with pytest.raises(ArtifactError, match=r"jobs/\w+.py first"):
        preflight.check_policies(prepared, RunDirectory(prepared.run_dir), job)


def test_policies_left_by_another_number_of_learners_are_refused(policy_run, tmp_path):
    shutil.copytree(
        policy_run.run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("policies", "policy_evaluation")
    )
    config = policy_run.with_settings({"run_dir": str(tmp_path / "run"), "ppo.num_learners": 2})
    directory = RunDirectory(config.run_dir)
    recipe = next(iter(make_plan(config, directory).missing.values()))
    folder = checkpoints_of(recipe, "policy_checkpoints", run_address=directory.absolute_address, place=None)
    left = folder / "step_00000003"
    left.mkdir(parents=True)
    (left / "rank_0.pt").touch()
    (left / "zero_stage").write_text("0")
    with pytest.raises(TrainingError, match=r"written by 1 ranks, ppo.num_learners is 2"):
        preflight.check_policy_checkpoints(config, directory, "ppo")
    preflight.check_policy_checkpoints(config.with_settings({"ppo.num_learners": 1}), directory, "ppo")
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    start = time.monotonic()
    done = run_job("ppo", "--config", str(file))
    assert is_at_once(time.monotonic() - start)
    assert done.returncode == 1 and "written by 1 ranks, ppo.num_learners is 2" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("job", ["train_global", "train", "sft", "ppo"])
def test_communities_that_the_data_does_not_have(prepared, job):
    other = prepared.with_settings({f"{job}.communities": ("Brevja",), "dry_run": True})
    with pytest.raises(ConfigError, match=rf"{job}.communities: no pairs from 'Brevja'; the data has: Atlas, Brevia"):
        preflight.passed(other, job)


def test_a_chat_template_that_fails(tmp_path, tiny_reward_model):
    folder = tmp_path / "model"
    shutil.copytree(tiny_reward_model, folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('system message expected') }}")
    with pytest.raises(DataError, match=r"train_global.model: .* its chat template refuses .*system message expected"):
        plan.check_model(of(tmp_path, train_global={"model": str(folder)}), "train_global")


def test_artifacts_of_another_config_are_refused_before_anything_runs(prepared):
    other = prepared.model_copy(update={"seed": 1})
    with pytest.raises(ArtifactError, match=r"prepared: made with seed = 0, this config has 1; use another --run_dir"):
        preflight.check_artifacts(other, RunDirectory(other.run_dir), "pipeline")
    with pytest.raises(ArtifactError, match=r"remake it with jobs/prepare.py --rebuild true"):
        preflight.check_artifacts(other, RunDirectory(other.run_dir), "train")
    assert preflight.check_artifacts(prepared, RunDirectory(prepared.run_dir), "pipeline") == {"prepare"}
    rebuilt = other.model_copy(update={"rebuild": True})
    assert preflight.check_artifacts(rebuilt, RunDirectory(rebuilt.run_dir), "pipeline") == set()


def test_a_finished_run_has_nothing_left_and_another_evaluation_is_refused_at_once(controlled_run):
    directory = RunDirectory(controlled_run.run_dir)
    found = preflight.check_artifacts(controlled_run, directory, "pipeline")
    assert found == {"prepare", "train_global", "score", "select", "train", "evaluate"}
    settings = {"evaluate.num_resamples": controlled_run.evaluate.num_resamples + 1}
    with pytest.raises(ArtifactError, match=r"evaluation: made with evaluate.num_resamples = "):
        preflight.check_artifacts(controlled_run.with_settings(settings), directory, "pipeline")


def test_what_is_made_needs_no_place(controlled_run, capsys):
    """Trained on many GPUs elsewhere: there is none here, and nothing is left to train."""
    elsewhere = controlled_run.with_settings({"train.num_workers": 64, "train.use_gpu": True, "dry_run": True})
    assert not preflight.passed(elsewhere, "pipeline")
    assert capsys.readouterr().out.count("nothing: it is made") == 6


def test_a_checkpoint_of_another_number_of_workers_is_refused(prepared):
    directory = RunDirectory(prepared.run_dir)
    recipe = global_model(prepared, directory)
    step = checkpoints_of(recipe, "checkpoints", run_address=directory.absolute_address, place=None) / "step_00000004"
    step.mkdir(parents=True)
    for rank in range(2):
        torch.save({}, step / f"rank_{rank}.pt")
    (step / "zero_stage").write_text("2")
    with pytest.raises(
        TrainingError,
        match=r"step_00000004: written by 2 ranks, train_global.num_workers is 1, .*; set train_global.num_workers to 2, or "
        r"delete the folder",
    ):
        preflight.check_checkpoints(prepared.with_settings({"train_global.zero_stage": 2}), directory, JOBS["pipeline"])
    with pytest.raises(
        TrainingError, match=r"under ZeRO stage 2, train_global.zero_stage is 0; set it to 2, or delete"
    ):
        preflight.check_checkpoints(prepared, directory, JOBS["pipeline"])
    two = prepared.with_settings({"train_global.num_workers": 2, "train_global.zero_stage": 2})
    preflight.check_checkpoints(two, directory, JOBS["pipeline"])
    (step / "zero_stage").write_text("0")
    preflight.check_checkpoints(prepared, directory, JOBS["pipeline"])  # every rank holds everything
    (step / "zero_stage").unlink()
    with pytest.raises(
        TrainingError, match=r"step_00000004: does not say its ZeRO stage, .*; delete it to begin again"
    ):
        preflight.check_checkpoints(prepared, directory, JOBS["pipeline"])


def run_job(job: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"jobs/{job}.py", *options],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "140"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_dry_run_prints_the_plan_and_starts_nothing(tmp_path):
    done = run_job("pipeline", "--run_dir", str(tmp_path / "run"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "Plan: 1 node" in done.stdout
    assert "preparing the data in a temporary folder" in done.stderr
    assert not list(tmp_path.iterdir())
    (training,) = (line for line in done.stdout.splitlines() if "│ train_global" in line)
    cells = [cell.strip() for cell in training.strip("│").split("│")]
    assert cells[1:3] == ["1 training worker", "1 CPU"] and re.fullmatch(r"room for \d+", cells[3])
    config = of(tmp_path)
    prepare.run(config)
    expected = estimate(config, RunDirectory(config.run_dir), "train_global", LAPTOP)
    assert cells[4] == count(expected.num_tokens), "counted as if it had been prepared"


def test_what_is_seen_of_a_cluster(tmp_path):
    """Which nodes can hold an actor, and how many of them."""
    config = of(tmp_path, train={"use_gpu": True, "num_workers": 8, "num_worker_groups": 2, "cpus_per_worker": 6})
    shown = Console(width=200, file=io.StringIO())
    lines = [plan.StagePlan(stage, False, needs_of(config, stage), None) for stage in ("score", "select", "train")]
    shown.print(plan.table(lines, GPU_CLUSTER))
    text = shown.file.getvalue()
    assert re.search(r"score .* 1 CPU +│ 3 of 3 nodes, room for 80 ", text)
    assert re.search(r"train .* 6 CPU, 1 GPU +│ 2 of 3 nodes, room for 10 ", text)
    assert re.search(r"select +│ in the job's process +│ +│ +│", text)


def test_a_model_without_a_device_is_refused_once_the_data_is_prepared(tmp_path):
    """Before any actor starts, and under --dry-run as well."""
    huge = {"train_global.scratch.hidden_size": 8192, "train_global.scratch.num_layers": 80}
    config = of(tmp_path, **TINY).with_settings(huge)
    with pytest.raises(ConfigError, match=r"^train_global: weights, gradients .* and the largest node has"):
        preflight.passed(config.with_settings({"dry_run": True}), "pipeline")
    assert not list(tmp_path.iterdir())
    assert preflight.passed(config, "pipeline")
    with pytest.raises(ConfigError, match=r"^train_global: weights, gradients .* and the largest node has"):
        pipeline.run(config)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"prepared", "config.yaml"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.use_gpu", "true"], "train: 1 training worker: 1 GPU needed, 0 there (this machine)"),
        (["--run_dir", "/proc/run"], "/proc"),
        (
            ["--run_dir", "s3://runs/run?endpoint_override=no-such-host.invalid", "--train.checkpoint_dir", "/tmp"],
            "no host no-such-host.invalid is known here",
        ),
    ],
)
def test_a_refusal_takes_less_than_five_seconds(tmp_path, options, message):
    run_job("pipeline", "--help")  # bytecode
    start = time.monotonic()
    done = run_job("pipeline", "--run_dir", str(tmp_path / "run"), *options)
    assert is_at_once(time.monotonic() - start)
    assert done.returncode != 0 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_so_does_that_of_a_mismatched_manifest_and_of_another_number_of_workers(prepared):
    file = Path(prepared.run_dir).parent / "config.yaml"
    file.write_text(dump_yaml(prepared))
    recipe = global_model(prepared, RunDirectory(prepared.run_dir))
    step = checkpoints_of(recipe, "checkpoints", run_address=prepared.run_dir, place=None) / "step_00000004"
    step.mkdir(parents=True)
    torch.save({}, step / "rank_0.pt")
    (step / "zero_stage").write_text("1")
    before = sorted(Path(prepared.run_dir).rglob("*"))
    for options, message in (
        (["--seed", "1"], "prepared: made with seed = 0, this config has 1"),
        (
            ["--train_global.num_workers", "2", "--train_global.zero_stage", "1"],
            "step_00000004: written by 1 ranks, train_global.num_workers is 2",
        ),
    ):
        start = time.monotonic()
        done = run_job("pipeline", "--config", str(file), *options)
        assert is_at_once(time.monotonic() - start)
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
    assert sorted(Path(prepared.run_dir).rglob("*")) == before
