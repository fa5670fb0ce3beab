"""`published.yaml` against the reference implementation, written again here from PRISM's raw rows: the same pairs kept,
with the same weights, and the same loss and gradients on them."""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from scpo_ray import models
from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import load_config
from scpo_ray.config import Config, ModelConfig
from scpo_ray.formatting import Formatter
from scpo_ray.records import ModelName
from scpo_ray.stages import prepare, score, select, train, train_global
from scpo_ray.training.data import load_preferences
from scpo_ray.training.step import collate_items, normalizers, part_loss
from tests.prism_files import write_prism

PUBLISHED = Path(__file__).parents[2] / "jobs/experiments/published.yaml"
COUNTRIES = {"Chile": 5, "South Africa": 3, "Israel": 3, "United States": 3, "United Kingdom": 2, "France": 2}
THRESHOLD, TEMPERATURE = 0.7, 1.1  # the publication's numbers, not the config's
Key = tuple[str, str, str, str]
"""Annotator, prompt, chosen, rejected."""


@dataclass(frozen=True)
class Published:
    """A run of `published.yaml` up to the decisions."""

    config: Config
    directory: RunDirectory
    utterances: list[dict]
    countries: dict[str, str]
    model_folder: Path


@pytest.fixture(scope="module")
def published(tmp_path_factory, ray_cluster) -> Published:
    root = tmp_path_factory.mktemp("published")
    write_prism(root / "prism", num_annotators_by_country=COUNTRIES, seed=11)
    utterances, survey = (_read_jsonl(root / "prism" / name) for name in ("utterances.jsonl", "survey.jsonl"))
    _save_opinionated_model(root / "model", [row["model_response"] for row in utterances])
    options = (
        f"--config {PUBLISHED} --run_dir {root / 'run'} --prepare.prism.path {root / 'prism'} --format.max_tokens 256 "
        f"--train_global.model {root / 'model'} --train_global.epochs 0 --train_global.use_gpu false "
        "--score.gpus_per_scorer 0 --train.use_gpu false --train.precision float32 --train_global.precision float32"
    ).split()
    config = load_config([*options, "--prepare.communities", "Chile,Israel,South Africa"])
    for stage in (prepare, train_global, score, select):
        stage.run(config)
    return Published(
        config,
        RunDirectory(config.run_dir),
        utterances,
        {row["user_id"]: row["location"]["reside_country"] for row in survey},
        root / "model",
    )


def _read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _save_opinionated_model(folder: Path, texts: list[str]) -> None:
    """Random weights give rewards near zero and keep every pair; a larger head spreads the agreement over (0, 1)."""
    made = models.make(ModelConfig(vocab_size=400), texts=texts, max_tokens=256, seed=3)
    with torch.no_grad():
        made.model.score.weight.mul_(60)
    models.save(made.model, made.tokenizer, folder)


class Reference:
    """The published method from raw rows, with transformers alone."""

    def __init__(self, published: Published) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(published.model_folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(published.model_folder, num_labels=1)
        self._published = published

    def reward(self, prompt: str, response: str) -> torch.Tensor:
        """The scalar logit of the prompt and the response as one chat, alone in its batch."""
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False)
        return self.model(**self._tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0]

    def pairs(self) -> dict[Key, str]:
        """Every chosen response with every other one of its turn -> the annotator's country."""
        turns: dict[str, list[dict]] = defaultdict(list)
        for row in self._published.utterances:
            turns[row["interaction_id"]].append(row)
        countries = {*self._published.config.prepare.communities, "United States", "United Kingdom"}
        found = {}
        for rows in turns.values():
            (chosen,) = (row for row in rows if row["if_chosen"])
            country = self._published.countries[chosen["user_id"]]
            for row in rows:
                if not row["if_chosen"] and country in countries:
                    key = (row["user_id"], row["user_prompt"], chosen["model_response"], row["model_response"])
                    found[key] = country
        return found

    @torch.inference_mode()
    def decisions(self) -> dict[Key, tuple[float, float]]:
        """Agreement and weight of every pair: the published formulas, in float32."""
        rewards: dict[tuple[str, str], torch.Tensor] = {}
        decided = {}
        for key in self.pairs():
            _, prompt, *responses = key
            for response in responses:
                if (prompt, response) not in rewards:
                    rewards[prompt, response] = self.reward(prompt, response)
            chosen, rejected = (rewards[prompt, response] for response in responses)
            probability = torch.exp(chosen) / (torch.exp(chosen) + torch.exp(rejected))
            weight = torch.clamp(torch.exp((chosen - rejected) / TEMPERATURE), max=1.0)
            decided[key] = float(probability), float(weight)
        return decided


@pytest.fixture(scope="module")
def reference(published) -> dict[Key, tuple[float, float]]:
    decided = Reference(published).decisions()
    probabilities = np.array([probability for probability, _ in decided.values()])
    assert 0.2 < np.mean(probabilities < THRESHOLD) < 0.9  # else "the same pairs" would say little
    assert abs(probabilities - THRESHOLD).min() > 1e-5  # else rounding could decide
    return decided


def _texts(published: Published) -> dict[str, tuple[Key, str]]:
    """Pair id -> who preferred what to what, in which split."""
    responses = {
        row["response_id"]: row for row in published.directory.read_table("prepared/responses.parquet").to_pylist()
    }
    found = {}
    for pair in published.directory.read_table("prepared/pairs.parquet").to_pylist():
        chosen, rejected = responses[pair["chosen_id"]], responses[pair["rejected_id"]]
        (message,) = chosen["context"]  # the last prompt, without the conversation before it
        assert message["role"] == "user"
        key = (pair["annotator_id"], message["content"], chosen["response"], rejected["response"])
        found[pair["pair_id"]] = key, pair["split"]
    return found


def test_the_same_pairs_stand_in_the_same_communities(published):
    pairs = published.directory.read_table("prepared/pairs.parquet", columns=["pair_id", "community"]).to_pylist()
    texts = _texts(published)
    ours = {texts[pair["pair_id"]][0]: pair["community"] for pair in pairs}
    assert len(ours) == len(pairs)
    assert ours == Reference(published).pairs()


def test_training_and_test_pairs_alone_and_by_pair(published):
    pairs = published.directory.read_table("prepared/pairs.parquet").to_pylist()
    assert {pair["split"] for pair in pairs} == {"train", "test"}
    sides = defaultdict(set)
    for pair in pairs:
        sides[pair["annotator_id"]].add(pair["split"])
    assert {"train", "test"} in sides.values()  # the published leak, kept so that it can be measured
    assert published.directory.read_json("prepared/leakage.json")["test"]["annotator_in_train"] > 0.5


def test_keeps_the_same_pairs_with_the_same_weights(published, reference):
    texts = _texts(published)
    ledger = published.directory.read_table("decisions/filter_weight/decisions.parquet").to_pylist()
    kept = {texts[row["pair_id"]][0]: row["weight"] for row in ledger if row["kept"]}
    expected = {key: weight for key, (probability, weight) in reference.items() if probability < THRESHOLD}
    assert kept.keys() == expected.keys()
    assert list(kept.values()) == pytest.approx([expected[key] for key in kept], rel=2e-5)
    assert all(row["weight"] == 0 for row in ledger if not row["kept"])
    assert min(kept.values()) < 0.5 and max(kept.values()) == 1.0
    agreements = {texts[row["pair_id"]][0]: row["agreement"] for row in ledger}
    assert list(agreements.values()) == pytest.approx([reference[key][0] for key in agreements], rel=2e-5)


def test_loss_and_gradients_are_the_published_ones(published, reference):
    config = published.config
    tasks, outcome = train.plan(config, published.directory)
    assert not outcome.failed and {str(name) for name in tasks} == {
        f"filter_weight/{name}" for name in config.prepare.communities
    }
    task = tasks[ModelName("filter_weight", "Chile")]
    loaded = models.load(published.model_folder)
    models.prepare_for_training(loaded.model, dropout=config.train.dropout, gradient_checkpointing=False)
    formatter = Formatter(loaded.tokenizer, config.format)
    data = load_preferences(task, formatter, split="train")
    texts = _texts(published)
    kept = sorted(
        pair_id
        for pair_id, (key, split) in texts.items()
        if split == "train" and reference[key][0] < THRESHOLD and published.countries[key[0]] == "Chile"
    )
    assert data.num_pairs == len(data.items) == len(kept) == task.size  # a pair is a unit of a batch, as published
    (batch,) = data.batches(batch_size=config.train.batch_size, seed=0, first_step=0, num_steps=1)
    assert len(batch) == 16
    normalizer, num_pairs = normalizers(batch, config.train)
    ours = part_loss(
        loaded.model,
        collate_items(batch, data, partial(formatter.pad, multiple=config.train.pad_to_multiple), config.train),
        config.train,
        normalizer=normalizer,
        num_pairs=num_pairs,
    ).loss
    ours.backward()

    plain = Reference(published)
    position = {id(item): index for index, item in enumerate(data.items)}
    terms = []
    for item in batch:
        key, _ = texts[kept[position[id(item)]]]
        _, prompt, chosen, rejected = key
        margin = plain.reward(prompt, chosen) - plain.reward(prompt, rejected)
        terms.append(-reference[key][1] * torch.log(torch.sigmoid(margin)))
    expected = torch.stack(terms).sum() / len(terms)  # by the number of pairs, not by the weights' sum
    expected.backward()

    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    assert sum(reference[texts[kept[position[id(item)]]][0]][1] for item in batch) < 0.95 * len(batch)
    gradients = {name: parameter.grad for name, parameter in plain.model.named_parameters()}
    assert gradients["score.weight"].abs().max() > 1e-3
    for name, parameter in loaded.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5, msg=name)


NAMED_DEFAULTS = {
    "prepare.prism.history": "full",
    "prepare.prism.pairing": "all",
    "prepare.validation_fraction": 0.1,
    "prepare.split_by": "auto",
    "prepare.stratify": True,
    "select.agreement_form": "sigmoid",
    "train.batching": "interactions",
    "train.length_window": 16,
    "train.dropout": False,
    "train.seeded": True,
    "evaluate.dropout": False,
}
"""What the file's comments call the default, with its value."""
BUDGET = {"train.max_steps", "train.max_steps_overrides_epochs"}
"""Corrected together: the default lets the epochs count."""
RESOURCES = (
    "prepare.datasets",
    "prepare.majority",
    "prepare.communities",
    "format.",
    "train_global.",
    "score.",
    "report.",
)
HARDWARE = {"train.precision", "train.use_gpu"}


def _flat(values: dict, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_the_comments_name_the_defaults():
    stack: list[tuple[int, str]] = []
    named = {}
    for line in PUBLISHED.read_text(encoding="utf-8").splitlines():
        match = re.match(r"( *)(\w+):([^#]*)(?:#.*\bdefault (\S+?):?(?: .*)?)?$", line)
        if match is None:
            continue
        indent = len(match[1])
        stack = [(depth, key) for depth, key in stack if depth < indent] + [(indent, match[2])]
        if match[4]:
            named[".".join(key for _, key in stack)] = yaml.safe_load(match[4])
    assert named == NAMED_DEFAULTS


def test_corrections_are_what_the_comments_say():
    stated, defaults = load_config(["--config", str(PUBLISHED)]), Config()
    ours, theirs = _flat(defaults.model_dump()), _flat(stated.model_dump())
    differing = {key for key in ours if ours[key] != theirs[key]}
    corrections = {key for key in differing if not key.startswith(RESOURCES)} - HARDWARE
    assert corrections == NAMED_DEFAULTS.keys() | BUDGET
    assert {key: ours[key] for key in NAMED_DEFAULTS} == NAMED_DEFAULTS
    assert (ours["train.max_steps"], ours["train.max_steps_overrides_epochs"]) == (None, False)
    assert (theirs["select.agreement_threshold"], theirs["select.weight_temperature"]) == (THRESHOLD, TEMPERATURE)
    assert (theirs["select.strategy"], theirs["train.normalization"]) == ("filter_weight", "pairs")
