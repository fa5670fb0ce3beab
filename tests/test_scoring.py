"""Scores equal a plain forward pass, one response each, whatever they were batched with."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from scpo_ray import models, scoring
from scpo_ray.config import FormatConfig, ModelConfig, ScoreConfig
from scpo_ray.errors import DataError, ModelError
from scpo_ray.formatting import Formatter
from scpo_ray.precision import native_bfloat16, uses_bfloat16
from scpo_ray.scoring import RewardScorer
from tests.one_by_one import rewards_one_by_one
from tests.small_models import deberta

WORDS = ["fix", "the", "boat", "with", "care", "and", "decide", "it", "together", "or", "keep", "to", "facts"]
FORMAT = FormatConfig(max_tokens=64)


def _texts(number, seed=0):
    random = np.random.default_rng(seed)
    sizes = np.clip(random.lognormal(3, 0.7, number), 2, 120).astype(int)
    contexts = [[{"role": "user", "content": " ".join(random.choice(WORDS, 5))}] for _ in range(number)]
    return contexts, [" ".join(random.choice(WORDS, size)) for size in sizes]


@pytest.fixture(scope="module", params=["llama", "bert"])
def folder(request, tmp_path_factory):
    return _save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return _save("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module", params=["bert", "deberta"])
def encoder(request, tmp_path_factory):
    return _save(request.param, tmp_path_factory.mktemp(request.param))


def _save(architecture, folder):
    if architecture == "deberta":
        made = deberta(" ".join(WORDS), seed=0)
    else:
        config = ModelConfig(architecture=architecture, hidden_size=32, num_heads=1)
        made = models.make(config, texts=WORDS, max_tokens=96, seed=0)
        with torch.no_grad():
            for parameter in made.model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)  # fresh weights are so small that all rewards are nearly equal
    models.save(made.model, made.tokenizer, folder)
    return folder


def _scorer(folder, **settings):
    settings = {"format_config": FORMAT, "tokens_per_batch": 1024, "precision": "float32", "device": "cpu"} | settings
    return RewardScorer(folder, **settings)


def _one_by_one(folder, contexts, responses):
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    sequences = Formatter(models.load_tokenizer(folder), FORMAT).format(contexts, responses)
    return np.array(rewards_one_by_one(model, sequences))


def test_rewards_equal_one_by_one_forwards(folder):
    contexts, responses = _texts(48)
    expected = _one_by_one(folder, contexts, responses)
    assert expected.std() > 0.01
    for tokens_per_batch in (64, 700, 100_000):
        scores = _scorer(folder, tokens_per_batch=tokens_per_batch).score(contexts, responses)
        np.testing.assert_allclose(scores.rewards, expected, atol=1e-5)
    order = np.random.default_rng(1).permutation(48)
    shuffled = _scorer(folder).score([contexts[index] for index in order], [responses[index] for index in order])
    np.testing.assert_allclose(shuffled.rewards, expected[order], atol=1e-5)
    assert shuffled.rewards.dtype == np.float32


@pytest.fixture(params=["packed", "padded"])
def scorer(request, folder, monkeypatch):
    if request.param == "padded":
        monkeypatch.setattr(scoring, "can_pack", lambda model: False)
    made = _scorer(folder, tokens_per_batch=300)
    assert made.packs == (request.param == "packed")
    return made


def test_each_response_is_in_exactly_one_forward_pass(folder, scorer):
    contexts, responses = _texts(40)
    seen, computed = [], []

    def record(module, args, kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if scorer.packs:
            starts = torch.nonzero(kwargs["position_ids"][0] == 0).flatten().tolist()
            seen.extend(tuple(part.tolist()) for part in ids[0].tensor_split(starts[1:]))
        else:
            mask = kwargs["attention_mask"].bool()
            seen.extend(tuple(row[own].tolist()) for row, own in zip(ids, mask, strict=True))
        computed.append(ids.numel())

    scorer._model.base_model.register_forward_pre_hook(record, with_kwargs=True)
    scores = scorer.score(contexts, responses)
    sequences = Formatter(models.load_tokenizer(folder), FORMAT).format(contexts, responses)
    assert sorted(seen) == sorted(tuple(sequence.input_ids) for sequence in sequences)
    assert scores.num_tokens == [len(sequence.input_ids) for sequence in sequences]
    assert scores.truncated == [sequence.truncated for sequence in sequences]
    assert any(scores.truncated)
    assert not all(scores.truncated)
    assert max(computed) <= 300
    cost = scores.cost
    assert (cost.num_responses, cost.num_forward_passes) == (40, len(computed))
    assert (cost.num_tokens, cost.num_padded_tokens) == (sum(scores.num_tokens), sum(computed))
    np.testing.assert_allclose(scores.rewards, _one_by_one(folder, contexts, responses), atol=1e-5)


def test_a_decoder_reads_a_context_once_for_all_of_its_responses(tmp_path):
    folder = _save("llama", tmp_path)
    contexts = [[{"role": "user", "content": " ".join(WORDS[start:] * 2)}] for start in range(6) for _ in range(3)]
    _, responses = _texts(18, seed=3)
    order = np.random.default_rng(4).permutation(18).tolist()  # siblings are found wherever they stand
    contexts, responses = [contexts[index] for index in order], [responses[index][:60] for index in order]
    scorer, computed = _scorer(folder, tokens_per_batch=150), []
    scorer._model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: computed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    scores = scorer.score(contexts, responses)
    assert not any(scores.truncated) and max(computed) <= 150
    heads = [len(Formatter(models.load_tokenizer(folder), FORMAT).prompts([context])[0]) for context in contexts]
    assert sum(computed) == sum(scores.num_tokens) - sum(heads) * 2 // 3
    np.testing.assert_allclose(scores.rewards, _one_by_one(folder, contexts, responses), atol=1e-5)


def test_padding_is_below_five_percent(bert, monkeypatch):
    contexts, responses = _texts(ScoreConfig().window)
    settings = {"tokens_per_batch": ScoreConfig().tokens_per_batch}
    assert _scorer(bert, **settings).score(contexts, responses).cost.padding_share == 0
    monkeypatch.setattr(scoring, "can_pack", lambda model: False)
    assert 0 < _scorer(bert, **settings).score(contexts, responses).cost.padding_share < 0.05


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_on_a_cpu_two_passes_run_side_by_side_on_half_of_the_threads_each(encoder, four_threads):
    contexts, responses = _texts(24)
    scorer = _scorer(encoder, tokens_per_batch=200)
    met, threads = threading.Barrier(2, timeout=30), []

    def meet(module, args, kwargs):
        threads.append(torch.get_num_threads())
        if len(threads) <= 2:
            met.wait()  # the first pass ends only once the second one runs

    scorer._model.base_model.register_forward_pre_hook(meet, with_kwargs=True)
    scores = scorer.score(contexts, responses)
    np.testing.assert_allclose(scores.rewards, _one_by_one(encoder, contexts, responses), atol=1e-5)
    assert len(threads) == scores.cost.num_forward_passes > 3
    assert set(threads) == {2}
    assert torch.get_num_threads() == 4, "the caller's own"
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 4, "what threads begin with"


def test_one_batch_has_all_threads(bert, four_threads):
    threads = []
    scorer = _scorer(bert, tokens_per_batch=None)
    scorer._model.base_model.register_forward_pre_hook(lambda *_: threads.append(torch.get_num_threads()))
    scorer.score(*_texts(4))
    assert threads == [4]


def test_nothing_to_score(bert):
    scores = _scorer(bert).score([], [])
    assert (len(scores.rewards), scores.cost.num_forward_passes, scores.cost.padding_share) == (0, 0, 0.0)


def test_an_empty_response_is_refused(bert):
    with pytest.raises(DataError, match="both must be non-empty"):
        _scorer(bert).score([[{"role": "user", "content": "fix"}]], [" "])


def test_damaged_weights_name_the_folder(bert, tmp_path):
    damaged = models.load(bert)
    with torch.no_grad():
        damaged.model.classifier.weight[0, 3] = math.nan
    models.save(damaged.model, damaged.tokenizer, tmp_path)
    contexts, responses = _texts(3)
    with pytest.raises(ModelError, match="reward nan for response") as caught:
        _scorer(tmp_path).score(contexts, responses)
    assert str(tmp_path) in str(caught.value)


def test_dropout_is_off_unless_asked_for(bert):
    contexts, responses = _texts(8)
    scorer = _scorer(bert)
    np.testing.assert_array_equal(scorer.score(contexts, responses).rewards, scorer.score(contexts, responses).rewards)
    noisy = _scorer(bert, dropout=True)
    first, second = (noisy.score(contexts, responses).rewards for _ in range(2))
    assert (first != second).all()


def test_the_head_stays_float32_under_bfloat16(folder):
    contexts, responses = _texts(32)
    exact = _scorer(folder).score(contexts, responses).rewards
    rewards = _scorer(folder, precision="bfloat16").score(contexts, responses).rewards
    assert (rewards != exact).any()  # the backbone did compute in bfloat16
    np.testing.assert_allclose(rewards, exact, atol=0.05 * np.abs(exact).max())
    rounded = torch.from_numpy(rewards).bfloat16().float().numpy()
    assert (rewards != rounded).mean() > 0.8
    assert len(set(rewards.tolist())) > 28


def test_precision_names():
    cpu = torch.device("cpu")
    assert uses_bfloat16("bfloat16", cpu)
    assert not uses_bfloat16("float32", cpu)
    assert uses_bfloat16("auto", cpu) == native_bfloat16(cpu)
