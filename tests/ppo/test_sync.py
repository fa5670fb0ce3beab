"""What is published is the whole policy; what differs on arrival is refused with the numbers."""

import contextlib
from dataclasses import replace

import peft
import pytest
import torch
from torch.testing import assert_close

from scpo_ray import policies
from scpo_ray.config import LoraConfig, ModelConfig
from scpo_ray.errors import SynchronizationError
from scpo_ray.ppo import sync
from scpo_ray.ppo.records import Canaries, SyncReport, WeightUpdate
from scpo_ray.training.engine import with_adapters

WORDS = ["ask your elders and then fix the old boat with care because it is yours , or sell it and be done with it ."]


def whole(parameters):
    return contextlib.nullcontext()


@pytest.fixture
def model():
    return policies.make(ModelConfig(hidden_size=64), texts=WORDS, max_tokens=64, seed=3).model


def published(model, dtype=torch.float32):
    return dict(sync.named_weights(model, whole, dtype=dtype))


def test_every_weight_under_its_plain_name(model):
    found = published(model)
    names = [name for name, _ in sync.named_weights(model, whole, dtype=torch.float32)]
    assert len(names) == len(set(names))
    assert found.keys() == {name for name, _ in model.named_parameters()} | {"lm_head.weight"}
    for name, parameter in model.named_parameters():
        assert torch.equal(found[name], parameter)
    assert torch.equal(found["lm_head.weight"], model.get_input_embeddings().weight)


def test_what_is_published_does_not_change_with_the_next_step(model):
    found = published(model)
    before = {name: tensor.clone() for name, tensor in found.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(found[name], before[name]) for name in found)


def test_adapters_are_folded_in(model):
    adapted = with_adapters(model, LoraConfig(enabled=True, rank=4), task="CAUSAL_LM")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    found = published(adapted)
    assert isinstance(adapted, peft.PeftModel)
    expected = dict(adapted.merge_and_unload().named_parameters())
    assert found.keys() == expected.keys() | {"lm_head.weight"}
    for name, parameter in expected.items():
        assert_close(found[name], parameter.detach(), atol=1e-6, rtol=0)


def test_a_checksum_sees_names_types_and_every_byte(model):
    def checksum(weights) -> str:
        found = sync.Checksum()
        for name, tensor in weights.items():
            found.update(name, tensor)
        return found.hexdigest()

    weights = published(model)
    first = next(iter(weights))
    scaled = weights | {first: weights[first] * 1.01}
    renamed = {("other" if name == first else name): tensor for name, tensor in weights.items()}
    missing = {name: tensor for name, tensor in weights.items() if name != first}
    halved = weights | {first: weights[first].bfloat16()}
    found = [checksum(each) for each in (weights, scaled, renamed, missing, halved)]
    assert len(set(found)) == 5
    assert checksum(published(model)) == found[0]


def test_chunks_hold_everything_in_order(monkeypatch):
    monkeypatch.setattr(sync, "_CHUNK_BYTES", 40)
    weights = [(str(number), torch.zeros(6)) for number in range(5)]
    chunks = list(sync.chunked(weights))
    assert [[name for name, _ in chunk] for chunk in chunks] == [["0", "1"], ["2", "3"], ["4"]]


UPDATE = WeightUpdate(4, (), "abc", 100, Canaries(((1, 2, 3),), ((-1.0, -2.0),)))
REPORT = SyncReport(4, "abc", ((-1.00005, -2.0),))


def test_agreement_is_measured():
    assert_close(sync.check(UPDATE, REPORT, engine="e", tolerance=1e-4), 5e-5, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (
            replace(REPORT, version=3),
            "e 0: has weights of version 3, the learner published 4: a synchronisation was skipped",
        ),
        (replace(REPORT, checksum="abd"), "checksum abd, the learner sent abc: they were damaged on the way"),
        (replace(REPORT, log_probs=((-1.01, -2.0),)), r"differs from the learner's by 0.01 nats .* is 0.0001"),
        (replace(REPORT, log_probs=((float("nan"), -2.0),)), "differs from the learner's by nan nats"),
        (replace(REPORT, log_probs=((-1.0,),)), "differs from the learner's by inf nats"),
    ],
)
def test_disagreement_stops_with_the_numbers(report, message):
    with pytest.raises(SynchronizationError, match=message):
        sync.check(UPDATE, report, engine="e 0", tolerance=1e-4)
