"""Reward models from elsewhere, compared on a pair file."""

import json
import math
from pathlib import Path

import pyarrow.compute as pc
import pytest
import torch

from scpo_ray import models
from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config, FormatConfig, ModelConfig
from scpo_ray.errors import ArtifactError, ConfigError, DataError, ModelError, ScpoError
from scpo_ray.scoring import RewardScorer
from scpo_ray.stages import evaluate_models

WORDS = ["what now ?", "wait a little longer please", "run away"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A decoder and an encoder with their own tokenizers, and one whose rewards are all equal."""
    root = tmp_path_factory.mktemp("models")
    made = {
        "decoder": models.make(ModelConfig(vocab_size=100), texts=WORDS, max_tokens=64, seed=1),
        "encoder": models.make(ModelConfig(architecture="bert", vocab_size=64), texts=WORDS[:1], max_tokens=64, seed=2),
        "equal": models.make(ModelConfig(vocab_size=100), texts=WORDS, max_tokens=64, seed=3),
    }
    torch.nn.init.zeros_(made["equal"].model.score.weight)
    for name, one in made.items():
        models.save(one.model, one.tokenizer, root / name)
    return {name: root / name for name in made}


@pytest.fixture
def config(tmp_path, folders) -> Config:
    rows = [
        {
            "prompt": f"what now {n} ?",
            "chosen": WORDS[1 + n % 2] + f" {n * n}",
            "rejected": WORDS[2 - n % 2] + f" {n}",
            "community": ("Here", "There")[n % 2],
            "annotator_id": f"rater {n // 4}",
        }
        for n in range(120)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Config(
        run_dir=str(tmp_path / "runs" / "compare"),
        prepare={
            "datasets": ["pair_files"],
            "pair_files": {"paths": [str(tmp_path / "pairs.jsonl")]},
            "majority": ["Here"],
        },
        format={"max_tokens": 64},
        score={"precision": "float32"},
        evaluate={"models": [str(folder) for folder in folders.values()], "num_resamples": 200},
    )


def test_accuracies_are_those_of_the_models_themselves(config, folders, ray_cluster):
    evaluate_models.run(config)
    run = RunDirectory(config.run_dir)
    accuracy = {
        (row["model"], row["community"]): row for row in run.read_table("model_evaluation/accuracy.parquet").to_pylist()
    }
    assert len(accuracy) == 3 * 3
    responses = {row["response_id"]: row for row in run.read_table("prepared/responses.parquet").to_pylist()}
    pairs = run.read_table("prepared/pairs.parquet", filters=pc.field("split") == "test").to_pylist()
    for name in ("decoder", "encoder"):
        scorer = RewardScorer(
            folders[name], format_config=FormatConfig(max_tokens=64), tokens_per_batch=512, precision="float32"
        )
        rewards = []
        for key in ("chosen_id", "rejected_id"):
            rows = [responses[pair[key]] for pair in pairs]
            rewards.append(scorer.score([row["context"] for row in rows], [row["response"] for row in rows]).rewards)
        correct = (rewards[0] > rewards[1]) + 0.5 * (rewards[0] == rewards[1])
        for community in ("Here", "There"):
            expected = [value for value, pair in zip(correct, pairs, strict=True) if pair["community"] == community]
            assert accuracy[str(folders[name]), community]["value"] == pytest.approx(sum(expected) / len(expected))
        assert accuracy[str(folders[name]), "all communities"]["value"] == pytest.approx(correct.mean())
    equal = accuracy[str(folders["equal"]), "Here"]
    assert (equal["value"], equal["low"], equal["high"]) == (0.5, 0.5, 0.5)


def test_the_others_are_compared_with_the_first(config, folders, ray_cluster):
    evaluate_models.run(config)
    rows = RunDirectory(config.run_dir).read_table("model_evaluation/comparisons.parquet").to_pylist()
    assert {row["against"] for row in rows} == {str(folders["decoder"])}
    assert {row["arm"] for row in rows} == {str(folders["encoder"]), str(folders["equal"])}
    assert all(row["p_value"] <= row["p_holm"] <= 1 for row in rows)
    shown = evaluate_models.summary(config).splitlines()
    of_models, about = shown[:-1], shown[-1]
    assert len(of_models) == 9 and sum("points against" in line for line in of_models) == 6
    assert about == RunDirectory(config.run_dir).require("model_evaluation", job="evaluate").statistics["pairs"]


def test_a_second_run_scores_nothing_and_another_model_is_refused(config, ray_cluster):
    evaluate_models.run(config)
    made = RunDirectory(config.run_dir).find("model_evaluation")
    evaluate_models.run(config)
    assert RunDirectory(config.run_dir).find("model_evaluation") == made
    fewer = config.evaluate.model_copy(update={"models": config.evaluate.models[:2]})
    with pytest.raises(ArtifactError, match=r"made with evaluate\.models"):
        evaluate_models.run(config.model_copy(update={"evaluate": fewer}))


@pytest.mark.parametrize(("name", "error"), [("no/such/model", ModelError), ("global", ConfigError)])
def test_a_model_that_is_not_there_stops_before_anything(config, name, error):
    wrong = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"models": (name,)})})
    with pytest.raises(error):
        evaluate_models.run(wrong)
    assert not Path(config.run_dir).exists()


def with_evaluate(config: Config, **changes: object) -> Config:
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=changes)})


def used_pairs(config: Config) -> int:
    rows = RunDirectory(config.run_dir).read_table("model_evaluation/accuracy.parquet").to_pylist()
    (number,) = {row["num_pairs"] for row in rows if row["community"] == "all communities"}
    return number


def write_pairs(path: Path, prompts: list[str]) -> Path:
    rows = [{"prompt": prompt, "chosen": "a b", "rejected": "c d", "community": "Elsewhere"} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class TestOverlapWithTrainingData:
    def test_pairs_that_the_models_learned_from_are_left_out_and_counted(self, config, tmp_path, ray_cluster):
        every = with_evaluate(config, model_splits=("train", "test"))
        evaluate_models.run(every)
        whole = used_pairs(every)
        pairs = RunDirectory(every.run_dir).read_table("prepared/pairs.parquet")
        assert whole == sum(split != "validation" for split in pairs["split"].to_pylist())

        theirs = write_pairs(
            tmp_path / "theirs.jsonl", [f"What  NOW {n} ?" for n in range(30)]
        )  # case and spaces differ
        fewer = with_evaluate(every, trained_on=(str(theirs),)).model_copy(update={"rebuild": True})
        evaluate_models.run(fewer)
        prompts = {
            row["response_id"]: row["context"][0]["content"]
            for row in RunDirectory(every.run_dir).read_table("prepared/responses.parquet").to_pylist()
        }
        seen = {f"what now {n} ?" for n in range(30)}
        left_out = sum(
            prompts[row["chosen_id"]] in seen for row in pairs.to_pylist() if row["split"] in ("train", "test")
        )
        assert left_out > 10
        assert used_pairs(fewer) == whole - left_out
        said = f"{left_out} of {whole} pairs ({left_out / whole:.1%}) are left out"
        assert said in evaluate_models.summary(fewer)
        assert said in Path(fewer.run_dir, "models.html").read_text()

    def test_the_training_pairs_of_a_run_count_too(self, config, tmp_path, ray_cluster):
        evaluate_models.run(config)
        other = config.model_copy(update={"run_dir": str(tmp_path / "runs" / "other")})
        other = with_evaluate(other, trained_on=(config.run_dir,), model_splits=("train", "test"))
        evaluate_models.run(other)  # the same pair file, so the same split: what is left are the test pairs
        tests = RunDirectory(config.run_dir).read_table("prepared/pairs.parquet", filters=pc.field("split") == "test")
        assert used_pairs(other) == len(tests)

    def test_nothing_left_is_an_error_before_any_scoring(self, config, tmp_path):
        theirs = write_pairs(tmp_path / "theirs.jsonl", [f"what now {n} ?" for n in range(120)])
        wrong = with_evaluate(config, trained_on=(str(theirs),))
        with pytest.raises(DataError, match=r"^evaluate\.trained_on: the contexts of all \d+ pairs occur there"):
            evaluate_models.run(wrong)
        assert RunDirectory(config.run_dir).find("model_evaluation") is None

    def test_a_file_that_is_not_there(self, config, tmp_path):
        wrong = with_evaluate(config, trained_on=(str(tmp_path / "nowhere.jsonl"),))
        with pytest.raises(ScpoError, match="nowhere"):
            evaluate_models.run(wrong)
        assert not Path(config.run_dir).exists()


class TestPage:
    def test_models_of_other_tokenizers_and_one_that_scores_all_equal(self, config, folders, ray_cluster):
        path = evaluate_models.run(config)
        assert path == f"{config.run_dir}/models.html"
        html = Path(path).read_text()
        assert f"{folders['equal']} gives every pair equal rewards: its 50% is no measurement." in html
        for row in RunDirectory(config.run_dir).read_table("model_evaluation/accuracy.parquet").to_pylist():
            assert f"{100 * row['value']:.1f}%" in html and str(row["num_pairs"]) in html
        assert "src=" not in html and "https://" not in html.replace("https://www.w3.org", ""), "nothing is loaded"

    def test_one_annotator_has_no_interval(self, config, tmp_path, ray_cluster):
        file = Path(config.prepare.pair_files.paths[0])
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text(
            "".join(
                json.dumps(row | ({"annotator_id": "the only one"} if row["community"] == "There" else {})) + "\n"
                for row in rows
            )
        )
        lone = config.model_copy(
            update={"prepare": config.prepare.model_copy(update={"split_by": "prompt", "test_fraction": 0.5})}
        )
        html = Path(evaluate_models.run(lone)).read_text()
        assert "No interval for There: pairs of fewer than two annotators or prompts." in html
        rows = RunDirectory(lone.run_dir).read_table("model_evaluation/accuracy.parquet").to_pylist()
        (row,) = [row for row in rows if row["community"] == "There" and row["model"] == str(lone.evaluate.models[0])]
        assert row["num_clusters"] == 1 and row["num_pairs"] > 10 and math.isnan(row["low"])


def test_rewards_that_are_no_numbers_name_the_model(config, folders, tmp_path, ray_cluster):
    broken = models.load(folders["decoder"], attention="eager")
    torch.nn.init.constant_(broken.model.score.weight, float("nan"))
    models.save(broken.model, broken.tokenizer, tmp_path / "broken")
    wrong = with_evaluate(config, models=(str(folders["decoder"]), str(tmp_path / "broken")))
    with pytest.raises(ModelError, match="broken"):
        evaluate_models.run(wrong)
    assert RunDirectory(config.run_dir).find("model_evaluation") is None
