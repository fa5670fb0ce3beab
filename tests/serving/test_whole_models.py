"""Models that no batch of several communities can be made of, and models whose passes must not overlap."""

import asyncio
import copy
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, get_peft_model

from scpo_ray import model_files, models
from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.config import FormatConfig, ModelConfig
from scpo_ray.config.serving import ServeConfig
from scpo_ray.errors import ArtifactError, ModelError
from scpo_ray.formatting import Formatter
from scpo_ray.scoring import RewardScorer
from scpo_ray.serving.batching import Batcher
from scpo_ray.serving.catalog import ServedModel, read_catalog
from scpo_ray.serving.loading import LoadedModels, load_models, load_whole
from scpo_ray.serving.rewards import Rewards, Text
from tests.small_models import deberta

TEXT = "what do you think of the new harbour honestly i like it a lot because there is more room for all boats"
WORDS = TEXT.split()
CONTEXT = [{"role": "user", "content": "what do you think of the new harbour ?"}]
RESPONSES = [" ".join(WORDS[start : start + length]) for start in range(8) for length in (1, 5, 13)]
FORMAT = FormatConfig(max_tokens=32)  # some are cut
COMMUNITIES = ("Brevia", "Calder Isles")


def bert() -> models.RewardModel:
    return models.make(ModelConfig(architecture="bert"), texts=[TEXT], max_tokens=32, seed=5)


def finished_run(
    address: Path, base: models.RewardModel, *, taken_from: Path | None = None, settings: dict | str | None = None
) -> RunDirectory:
    """What jobs leave of a run with LoRA, as far as a service reads it: whole models with their adapters beside them.

    Args:
        taken_from: where the global model lies, which is not part of the run then.
        settings: of the adapters, beside their own; a text in their place.
    """
    run = RunDirectory(str(address))
    with Recipe("prepared", "prepare", {}, {}, seed=0).making(run) as draft:
        draft.statistics["majority"] = ["Atlas"]
    with Recipe("global_model", "train_global", {}, {}, seed=0).making(run) as draft:
        if taken_from is None:
            models.save(base.model, base.tokenizer, draft.folder)
        else:
            draft.content_hash = model_files.content_hash(taken_from)
            draft.write_json("reference.json", {"address": str(taken_from), "content_hash": draft.content_hash})
    ruler = run.require("global_model", job="train_global").content_hash
    trained = {}
    for number, community in enumerate(COMMUNITIES):
        identity = {"arm": "filter_weight", "community": community, "format.max_tokens": FORMAT.max_tokens}
        name = f"reward_models/{number}"
        with Recipe(name, "train", identity, {"global_model": ruler}, seed=0).making(run) as draft:
            adapted = trained_adapters(base, seed=number)
            adapted.save_pretrained(str(draft.folder / models.ADAPTER), save_embedding_layers=False)
            path = draft.folder / models.ADAPTER / models.ADAPTER_CONFIG
            path.write_text(
                settings if isinstance(settings, str) else json.dumps(json.loads(path.read_text()) | (settings or {}))
            )
            models.save(adapted.merge_and_unload(), base.tokenizer, draft.folder)
        trained[f"filter_weight/{community}"] = run.require(name, job="train").content_hash
    with Recipe("evaluation", "evaluate", {}, trained, seed=0).making(run) as draft:
        draft.write_table("scales.parquet", pa.table({"community": pa.array([], pa.string())}))
    return run


def trained_adapters(base: models.RewardModel, *, seed: int):
    settings = LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules="all-linear")
    with models.seeded(seed), torch.no_grad():
        adapted = get_peft_model(copy.deepcopy(base.model), settings)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return adapted


@pytest.fixture(scope="module")
def deberta_run(tmp_path_factory) -> RunDirectory:
    return finished_run(tmp_path_factory.mktemp("deberta") / "run", deberta(TEXT, seed=5))


@pytest.fixture(scope="module")
def bert_run(tmp_path_factory) -> RunDirectory:
    return finished_run(tmp_path_factory.mktemp("bert") / "run", bert())


def config_of(run: RunDirectory) -> ServeConfig:
    """Small batches, two at a time, and nothing remembered."""
    settings = {"tokens_per_batch": 128, "passes": 2, "max_cached_rewards": 0, "authentication": "off"}
    return ServeConfig.model_validate({"run_dir": run.address} | settings)


def test_adapters_share_a_base_unless_it_is_a_deberta(deberta_run, bert_run):
    for run, shares_base in ((deberta_run, False), (bert_run, True)):
        found = read_catalog(config_of(run)).models
        assert {name: found[name].shares_base for name in COMMUNITIES} == dict.fromkeys(COMMUNITIES, shares_base)
        assert {found[name].kind for name in COMMUNITIES} == {"adapter" if shares_base else "full"}


@pytest.mark.parametrize("change", [{"rank_pattern": {"query": 4}}, {"fan_in_fan_out": True}, {"peft_type": "IA3"}])
def test_adapters_that_cannot_share_a_base_are_served_as_the_whole_models_beside_them(tmp_path, change):
    found = read_catalog(config_of(finished_run(tmp_path / "run", bert(), settings=change))).models
    assert [found[name].kind for name in COMMUNITIES] == ["full", "full"]
    assert [Path(found[name].folder).name for name in COMMUNITIES] == ["0", "1"]


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_configuration_of_an_adapter_is_one_line(tmp_path, content):
    with pytest.raises(ModelError, match=r"adapter_config\.json, or config.json above it: damaged"):
        read_catalog(config_of(finished_run(tmp_path / "run", bert(), settings=content)))


def test_a_base_that_is_another_one_by_now_is_refused(tmp_path):
    """The run names it and keeps no copy; its adapters, scales and temperatures are of what it was."""
    base, elsewhere = bert(), tmp_path / "elsewhere"
    models.save(base.model, base.tokenizer, elsewhere)
    run = finished_run(tmp_path / "run", base, taken_from=elsewhere)
    assert read_catalog(config_of(run)).models["Brevia"].folder == str(elsewhere)
    with torch.no_grad():
        base.model.get_input_embeddings().weight.add_(1)
    models.save(base.model, base.tokenizer, elsewhere)
    with pytest.raises(ArtifactError, match=r"elsewhere: not the model any more that .*run was made with"):
        read_catalog(config_of(run))


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    """transformers would put it on the model."""
    made = bert()
    models.save(made.model, made.tokenizer, tmp_path / "model")
    config = ServeConfig(models={"Chile": str(tmp_path / "model")}, authentication="off", format=FORMAT)
    assert "Chile" in read_catalog(config).models
    (tmp_path / "model" / models.ADAPTER_CONFIG).write_text("{}")
    with pytest.raises(ModelError, match=r"model: adapter_config\.json beside the weights; merge the adapter"):
        read_catalog(config)


@pytest.fixture
def meeting(monkeypatch) -> None:
    """The first passes of two threads wait for each other, so that they run side by side."""
    met, forward, met_by = threading.Barrier(2, timeout=30), RewardScorer.forward, set()

    def wait_once(self, sequences):
        thread = threading.current_thread().name
        if thread.startswith("forward") and thread not in met_by:
            met_by.add(thread)
            met.wait()
        return forward(self, sequences)

    monkeypatch.setattr(RewardScorer, "forward", wait_once)


@pytest.mark.usefixtures("meeting")
def test_every_community_of_a_deberta_run_gets_the_rewards_of_its_own_model(deberta_run):
    """From batches of their own making, two at a time, beside the scorer's batches, one at a time."""

    async def served() -> tuple[dict[str, list[float]], int]:
        catalog = read_catalog(config_of(deberta_run))
        rewards = Rewards(config_of(deberta_run), load_models(config_of(deberta_run), catalog))
        found = await rewards.of(list(catalog.models.values()), [Text(CONTEXT, response) for response in RESPONSES])
        values = {name: [reward.value for reward in row] for name, row in zip(catalog.models, found, strict=True)}
        rewards.close()
        return values, rewards.batcher.cost.num_forward_passes

    found, num_passes = asyncio.run(served())
    folders = {"Atlas": "global_model"} | {name: f"reward_models/{place}" for place, name in enumerate(COMMUNITIES)}
    assert set(found) == set(folders) and num_passes > 10
    expected = {name: whole_rewards(Path(deberta_run.path(folder))) for name, folder in folders.items()}
    for name, rewards in expected.items():
        assert np.abs(np.array(found[name]) - rewards).max() < 1e-5
        assert rewards.std() > 1e-2
    assert min(np.abs(expected["Atlas"] - expected[name]).max() for name in COMMUNITIES) > 1e-2


def whole_rewards(folder: Path) -> np.ndarray:
    scorer = RewardScorer(folder, format_config=FORMAT, tokens_per_batch=4096, precision="float32")
    return scorer.score([CONTEXT] * len(RESPONSES), RESPONSES).rewards


ORIGINAL = 32
"""Tokens beyond which some rotary embeddings take other frequencies."""
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "llama3": {
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "dynamic": {"factor": 4.0},
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0] * 16,
        "long_factor": [4.0] * 16,
    },
}
WRITING = ("dynamic", "longrope")


def decoder(folder: Path, rope: str) -> ServedModel:
    """Weights so large that positions matter."""
    made = models.make(ModelConfig(), texts=[TEXT], max_tokens=ORIGINAL, seed=3)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.mul_(5)
    made.model.config.rope_parameters = {"rope_type": rope, "rope_theta": 10_000.0} | ROPES[rope]
    models.save(made.model, made.tokenizer, folder)
    return ServedModel("Chile", "full", str(folder), "hash", FormatConfig(max_tokens=100))


@pytest.mark.parametrize("rope", ROPES)
def test_models_that_write_while_they_compute_are_known(tmp_path, rope):
    model = models.load(Path(decoder(tmp_path, rope).folder)).model
    before = model.model.rotary_emb.inv_freq.clone()
    with torch.inference_mode():
        model(input_ids=torch.full((1, 3 * ORIGINAL), 7))
    has_written = not torch.equal(model.model.rotary_emb.inv_freq, before)
    assert models.writes_in_forward(model) == has_written == (rope in WRITING)


def side_by_side(model: ServedModel, lengths: list[int], change: Callable) -> tuple[list[float], list[float]]:
    """Rewards of texts of these many tokens: each in a pass of its own, two at a time, through a model that `change` made
    slower; and one after the other."""
    formatter = Formatter(models.load_tokenizer(Path(model.folder)), model.format)
    texts = [" ".join(WORDS[(place + number) % len(WORDS)] for number in range(n)) for place, n in enumerate(lengths)]
    sequences = [formatter.whole(text) for text in texts]
    assert [len(sequence.input_ids) for sequence in sequences] == lengths
    config = ServeConfig(models={"Chile": model.folder}, authentication="off")

    def load(model: ServedModel, dropped: RewardScorer | None) -> RewardScorer:
        scorer = load_whole(config, model)
        change(scorer._model)
        return scorer

    async def run() -> list[float]:
        batcher = Batcher(LoadedModels(1, load), 1, len(sequences), num_passes=2)
        found = await asyncio.gather(*batcher.submit([(model, sequence) for sequence in sequences]))
        batcher.close()
        return found

    scorer = load_whole(config, model)
    return asyncio.run(run()), [float(scorer.forward([sequence])[0]) for sequence in sequences]


@pytest.mark.parametrize("rope", WRITING)
def test_passes_of_a_model_that_writes_do_not_disturb_each_other(tmp_path, rope):
    """Below and above the original length in turn; what a pass writes is used a while after."""

    def pause_after_writing(model):
        rotary = model.model.rotary_emb
        write = rotary.register_buffer

        def write_and_pause(name, tensor, persistent=True):
            write(name, tensor, persistent)
            time.sleep(0.01)

        rotary.register_buffer = write_and_pause

    # All long ones are of one length: frequencies of `dynamic` are those of the longest text since the last short one.
    found, expected = side_by_side(decoder(tmp_path, rope), [8, 90, 90, 31, 90, 20, 8, 90] * 4, pause_after_writing)
    assert found == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 1e-2


@pytest.mark.parametrize("rope", ["default", *WRITING])
def test_passes_overlap_only_where_the_model_does_not_write(tmp_path, rope):
    inside, most = 0, 0
    counting = threading.Lock()

    def count(model):
        forward = model.base_model.forward  # of padded and of packed batches

        def counted(*inputs, **others):
            nonlocal inside, most
            with counting:
                inside += 1
                most = max(most, inside)
            time.sleep(0.03)
            found = forward(*inputs, **others)
            with counting:
                inside -= 1
            return found

        model.base_model.forward = counted

    found, expected = side_by_side(decoder(tmp_path, rope), [8, 90] * 4, count)
    assert most == (1 if rope in WRITING else 2)
    assert found == pytest.approx(expected, abs=1e-5)
