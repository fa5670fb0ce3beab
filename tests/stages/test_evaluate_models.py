"""Reward models from elsewhere, compared on a pair file."""

import json
from pathlib import Path

import pyarrow.compute as pc
import pytest
import torch

from scpo_ray import models
from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config, FormatConfig, ModelConfig
from scpo_ray.errors import ArtifactError, ConfigError, ModelError
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
    assert len(shown) == 9
    assert sum("points against" in line for line in shown) == 6


def test_a_second_run_scores_nothing_and_another_model_is_refused(config, ray_cluster):
    first = evaluate_models.run(config)
    assert evaluate_models.run(config) == first
    fewer = config.evaluate.model_copy(update={"models": config.evaluate.models[:2]})
    with pytest.raises(ArtifactError, match=r"made with evaluate\.models"):
        evaluate_models.run(config.model_copy(update={"evaluate": fewer}))


@pytest.mark.parametrize(("name", "error"), [("no/such/model", ModelError), ("global", ConfigError)])
def test_a_model_that_is_not_there_stops_before_anything(config, name, error):
    wrong = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"models": (name,)})})
    with pytest.raises(error):
        evaluate_models.run(wrong)
    assert not Path(config.run_dir).exists()
