"""Adapters of many communities on one base, against each of them folded into a model of its own."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model

from scpo_ray import models, scoring
from scpo_ray.config import FormatConfig, ModelConfig
from scpo_ray.errors import ModelError
from scpo_ray.scoring import RewardScorer
from scpo_ray.serving import adapters
from scpo_ray.serving.adapters import AdapterScorer, worth_merging

TEXTS = ["i like it a lot .", "there is room for all boats .", "what do you think , honestly ?", "boats ."]
CONTEXT = [{"role": "user", "content": "what do you think of the new harbour ?"}]
FORMAT = FormatConfig(max_tokens=64)


@pytest.fixture(scope="module", params=["llama", "bert"])
def saved(request, tmp_path_factory):
    """A base and three adapters of different ranks, layers and scales; and each of them merged."""
    folder = tmp_path_factory.mktemp("adapters")
    made = models.make(
        ModelConfig(architecture=request.param), texts=[*TEXTS, "new harbour the of"], max_tokens=64, seed=0
    )
    torch.manual_seed(7)
    with torch.no_grad():
        for module in made.model.modules():
            if isinstance(module, torch.nn.Linear) and module.bias is not None:
                module.bias.normal_(std=0.1)  # zero in a fresh model, so that nobody would miss it
    models.save(made.model, made.tokenizer, folder / "base")
    linear = {"llama": ["q_proj", "down_proj"], "bert": ["query", "dense"]}[request.param]
    for number, (rank, alpha, layers) in enumerate([(2, 4, linear[:1]), (4, 16, linear), (8, 8, linear[1:])]):
        torch.manual_seed(number)
        settings = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=alpha, target_modules=layers)
        adapted = get_peft_model(copy.deepcopy(made.model), settings)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name or "modules_to_save" in name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        adapted.save_pretrained(str(folder / f"adapter{number}"), save_embedding_layers=False)
        models.save(adapted.merge_and_unload(), made.tokenizer, folder / f"merged{number}")
    return folder


def scorer_of(saved, precision="float32", **others) -> AdapterScorer:
    folders = {str(number): saved / f"adapter{number}" for number in range(3)}
    return AdapterScorer(saved / "base", folders | others, format_config=FORMAT, precision=precision)


def merged_rewards(folder, precision="float32") -> list[float]:
    """Through transformers' own forward passes on padded batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "can_pack", lambda model: False)
        scorer = RewardScorer(folder, format_config=FORMAT, tokens_per_batch=4096, precision=precision)
    return scorer.score([CONTEXT] * len(TEXTS), TEXTS).rewards.tolist()


def test_a_batch_of_mixed_communities_gives_each_row_its_own_reward(saved):
    scorer = scorer_of(saved, plain=None)
    sequences = scorer.formatter.format([CONTEXT] * len(TEXTS), TEXTS)
    expected = {str(number): merged_rewards(saved / f"merged{number}") for number in range(3)}
    expected["plain"] = merged_rewards(saved / "base")
    communities = ["2", "0", "plain", "1", "0", "2", "1", "plain"]
    rows = [0, 1, 2, 3, 3, 1, 0, 0]
    found = scorer.forward_for([sequences[row] for row in rows], communities)
    wanted = [expected[community][row] for community, row in zip(communities, rows, strict=True)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    assert len({round(rewards[0], 3) for rewards in expected.values()}) == 4


@pytest.mark.parametrize(("is_packed", "precision"), [(True, "float32"), (True, "bfloat16"), (False, "float32")])
def test_communities_with_many_tokens_are_merged_for_the_moment(saved, is_packed, precision, monkeypatch):
    """Of three communities in a batch two are large enough for some layers; rewards are those of merged models."""
    if not is_packed:
        monkeypatch.setattr(scoring, "can_pack", lambda model: False)
    scorer = scorer_of(saved, precision=precision)
    sequences = scorer.formatter.format([CONTEXT] * len(TEXTS), TEXTS)
    communities = ["0", "2"] * 40 + ["1"] * 8 + ["2"] * 20
    rows = [place % len(TEXTS) for place in range(len(communities))]
    merged = []

    def judged(num_rows, num_inputs, num_outputs):
        merged.append(worth_merging(num_rows, num_inputs, num_outputs))
        return merged[-1]

    monkeypatch.setattr(adapters, "worth_merging", judged)
    found = scorer.forward_for([sequences[row] for row in rows], communities)
    expected = {str(number): merged_rewards(saved / f"merged{number}") for number in range(3)}
    wanted = [expected[community][row] for community, row in zip(communities, rows, strict=True)]
    rounding = 1e-5 if precision == "float32" else 2**-6 * max(map(abs, wanted))  # 8 bits, a few layers
    assert found.tolist() == pytest.approx(wanted, abs=rounding)
    with ThreadPoolExecutor(2) as threads:
        again = threads.map(lambda _: scorer.forward_for([sequences[row] for row in rows], communities), range(8))
    assert all(each.tolist() == pytest.approx(found.tolist(), abs=rounding) for each in again)
    assert {*merged} == ({True, False} if is_packed else set())


def test_merging_is_worth_it_from_twice_the_break_even_of_arithmetic():
    assert worth_merging(384, 384, 384)
    assert not worth_merging(383, 384, 384)
    assert worth_merging(615, 384, 1536)
    assert not worth_merging(614, 1536, 384)


def test_two_threads_may_ask_at_the_same_time(saved):
    scorer = scorer_of(saved)
    sequences = scorer.formatter.format([CONTEXT] * len(TEXTS), TEXTS)
    batches = [([number] * 3, sequences[place : place + 3]) for number in "012" for place in (0, 1)]
    alone = [scorer.forward_for(texts, communities).tolist() for communities, texts in batches]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda batch: scorer.forward_for(batch[1], batch[0]).tolist(), batches * 30))
    for place, found in enumerate(together):
        assert found == pytest.approx(alone[place % len(batches)], abs=1e-6)


def test_the_base_is_in_memory_once(saved):
    one = AdapterScorer(saved / "base", {"0": saved / "adapter0"}, format_config=FORMAT, precision="float32")
    many = AdapterScorer(
        saved / "base",
        {str(number): saved / "adapter0" for number in range(50)},
        format_config=FORMAT,
        precision="float32",
    )
    assert size(many) - size(one) == 49 * adapter_size(saved / "adapter0")


def size(scorer: AdapterScorer) -> int:
    return sum(tensor.numel() for tensor in (*scorer._model.parameters(), *scorer._model.buffers()))


def adapter_size(folder) -> int:
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    head_bias = 0 if any(name.endswith("classifier.bias") for name in tensors) else 1  # every row of a bank has one
    return sum(tensor.numel() for tensor in tensors.values()) + head_bias


def test_an_adapter_of_another_base_is_refused(saved, tmp_path):
    other = models.make(ModelConfig(architecture="llama", num_layers=1), texts=TEXTS, max_tokens=64, seed=1)
    models.save(other.model, other.tokenizer, tmp_path / "base")
    with pytest.raises(ModelError, match=r"has no linear layer '.+', which an adapter changes; another base"):
        AdapterScorer(
            tmp_path / "base",
            {"1": saved / "adapter1"},
            format_config=FORMAT,
            precision="float32",
        )


@pytest.mark.parametrize("damage", ["missing", "cut", "dora"])
def test_a_damaged_adapter_is_refused(saved, tmp_path, damage):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((saved / "adapter0" / name).read_bytes())
    if damage == "missing":
        (folder / "adapter_model.safetensors").unlink()
    elif damage == "cut":
        (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 40)
    else:
        text = (folder / "adapter_config.json").read_text()
        (folder / "adapter_config.json").write_text(text.replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(ModelError, match=r"adapter: (not a readable adapter|only plain LoRA)"):
        scorer_of(saved, broken=folder)
