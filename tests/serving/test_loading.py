"""What is in memory stays bounded, whatever is asked at once."""

import asyncio
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from scpo_ray import models, reloading
from scpo_ray.config import FormatConfig
from scpo_ray.errors import ModelError
from scpo_ray.formatting import Formatter
from scpo_ray.scoring import RewardScorer
from scpo_ray.serving.batching import BusyError
from scpo_ray.serving.catalog import Catalog, ServedModel, stamp
from scpo_ray.serving.loading import LoadedModels, StaleModelError, load_models, load_whole
from scpo_ray.serving.rewards import Rewards, Text
from tests.serving.served_models import CONFIG, CONTEXT, Counting, served


def test_a_replica_starts_with_as_many_whole_models_as_there_is_room_for(tiny_reward_model):
    wanted = served(tiny_reward_model, 3)
    loaded = load_models(
        CONFIG.model_copy(update={"max_loaded_models": 2}), Catalog({m.community: m for m in wanted}, "float32")
    )
    assert loaded.num_loads == 2
    with loaded.used(wanted[0]), loaded.used(wanted[1]):
        assert loaded.num_loads == 2
    with loaded.used(wanted[2]):
        assert loaded.num_loads == 3


def test_a_replica_with_a_model_that_changed_does_not_start(tiny_reward_model):
    (model,) = served(tiny_reward_model, 1)
    with pytest.raises(ModelError, match="deploy again"):
        load_models(CONFIG, Catalog({"c0": replace(model, stamp="another")}, "float32"))


def test_one_request_for_everyone_never_has_more_in_memory_than_allowed(tiny_reward_model):
    load = Counting()

    async def run():
        rewards = Rewards(CONFIG, LoadedModels(2, load))
        return await rewards.of(served(tiny_reward_model, 9), [Text(CONTEXT, "i like it ."), Text(CONTEXT, "hey .")])

    found = asyncio.run(run())
    assert load.peak == 2 and load.num_loads == 9
    assert len({reward.value for row in found for reward in row}) == 2  # all have the same weights, the texts differ


def test_callers_who_give_up_do_not_load_a_model_twice(tiny_reward_model):
    load = Counting(seconds=0.3)

    async def run():
        rewards = Rewards(CONFIG, LoadedModels(2, load))
        model = served(tiny_reward_model, 1)
        for number in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(rewards.of(model, [Text(CONTEXT, f"text {number} .")]), 0.02)
        return await rewards.of(model, [Text(CONTEXT, "the last one .")])

    ((reward,),) = asyncio.run(run())
    assert np.isfinite(reward.value)
    assert load.num_loads == 1


def test_two_requests_that_share_a_text_share_its_computation_also_when_one_gives_up(tiny_reward_model):
    async def run():
        rewards = Rewards(CONFIG, LoadedModels(1, Counting(seconds=0.3)))
        model, text = served(tiny_reward_model, 1), [Text(CONTEXT, "shared .")]
        tasks = [asyncio.create_task(rewards.of(model, text)) for _ in range(3)]
        while [one.num_waiting for one in rewards._pending.values()] != [3]:
            await asyncio.sleep(0)
        tasks[0].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return results, rewards.batcher.cost.num_responses

    results, num_computed = asyncio.run(run())
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1] == results[2]
    assert num_computed == 1


def test_a_model_that_is_being_used_stays_and_the_next_one_waits(tiny_reward_model):
    load, order = Counting(), []
    first, second = served(tiny_reward_model, 2)
    loaded = LoadedModels(1, load)

    def ask_second():
        with loaded.used(second):
            order.append("second is there")

    with loaded.used(first) as scorer, loaded.used(first) as again:
        assert again is scorer
        del again
        other = threading.Thread(target=ask_second)
        other.start()
        other.join(0.5)
        assert load.alive == ["c0"] and other.is_alive()
        order.append("first is left")
        del scorer
    other.join(30)
    assert order == ["first is left", "second is there"]
    assert load.alive == ["c1"] and load.peak == 1 and loaded.num_loads == 2


def test_a_model_that_cannot_be_loaded_leaves_room_for_others(tiny_reward_model):
    first, second = served(tiny_reward_model, 2)

    def load(model, dropped):
        if model is first:
            raise ModelError("broken")
        return load_whole(CONFIG, model)

    loaded = LoadedModels(1, load)
    for _ in range(2):
        with pytest.raises(ModelError, match="broken"), loaded.used(first):
            pass
        with loaded.used(second) as scorer:
            assert isinstance(scorer, RewardScorer)


def test_a_model_that_changed_under_the_service_is_not_served(tiny_reward_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_reward_model, folder)
    (model,) = served(folder, 1)
    model = replace(model, stamp=stamp(model))
    load_whole(CONFIG, model)
    (weights,) = folder.glob("*.safetensors")
    shutil.copy(tiny_reward_model / weights.name, weights)  # the same size, written later
    with pytest.raises(ModelError, match="c0's model has changed since the service was deployed; deploy again"):
        load_whole(CONFIG, model)


def test_a_model_that_changes_while_it_is_loaded_is_told_as_that(tiny_reward_model, tmp_path, monkeypatch):
    (model,) = copies(tiny_reward_model, tmp_path, 1)

    def load(folder, **settings):
        (folder / "config.json").write_text("{")
        raise ModelError("cannot be loaded as a reward model")

    monkeypatch.setattr(models, "load", load)
    with pytest.raises(StaleModelError, match="c0's model has changed since the service was deployed; deploy again"):
        load_whole(CONFIG, model)


def test_a_model_that_was_removed_under_the_service_is_one_line_and_costs_nobody_a_place(tiny_reward_model, tmp_path):
    all_of_them = copies(tiny_reward_model, tmp_path, 2)
    config = CONFIG.model_copy(update={"max_loaded_models": 1, "max_cached_rewards": 0})
    loaded = load_models(config, Catalog({model.community: model for model in all_of_them}, "float32"))
    shutil.rmtree(tmp_path / "1")
    rewards = Rewards(config, loaded)
    before = answers(rewards, [all_of_them[0]])
    with pytest.raises(StaleModelError, match="c1's model cannot be read any more"):
        answers(rewards, [all_of_them[1]])
    assert answers(rewards, [all_of_them[0]]) == before
    assert loaded.num_loads == 1, "the first has stayed"


def test_a_model_that_is_replaced_before_the_first_request_still_answers_as_it_was(tiny_reward_model, tmp_path):
    """Its weights are in memory; so must be the tokenizer that they were trained with."""
    (model,) = copies(tiny_reward_model, tmp_path, 1)
    (expected,) = answers(Rewards(CONFIG, load_models(CONFIG, Catalog({"c0": model}, "float32"))), [model])
    loaded = load_models(CONFIG, Catalog({"c0": model}, "float32"))
    other = models.train_tokenizer(["it like i ."], vocab_size=60, architecture="llama")
    shutil.copytree(tmp_path / "0", tmp_path / "new")
    other.save_pretrained(tmp_path / "new")
    (tmp_path / "0").rename(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "0")
    assert answers(Rewards(CONFIG, loaded), [model]) == [expected]
    replaced = replace(model, stamp=stamp(model))
    (other_reward,) = answers(Rewards(CONFIG, load_models(CONFIG, Catalog({"c0": replaced}, "float32"))), [replaced])
    assert abs(other_reward - expected) > 1e-3


def test_what_would_not_be_queued_is_not_tokenised(tiny_reward_model, monkeypatch):
    """Two texts may wait; one does."""
    config = CONFIG.model_copy(update={"max_queued": 2, "max_cached_rewards": 0})
    tokenised = []
    whole = Formatter.format

    def noted(self, contexts, responses):
        tokenised.extend(responses)
        return whole(self, contexts, responses)

    monkeypatch.setattr(Formatter, "format", noted)

    async def run():
        rewards = Rewards(config, LoadedModels(1, Counting(seconds=0.5)))
        model = served(tiny_reward_model, 1)
        first = asyncio.create_task(rewards.of(model, [Text(CONTEXT, "one .")]))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(rewards.of(model, [Text(CONTEXT, "two .")]))
        await asyncio.sleep(0)  # it is being tokenised
        with pytest.raises(BusyError, match="1 responses wait and 2 may"):
            await rewards.of(model, [Text(CONTEXT, "three ."), Text(CONTEXT, "four .")])
        waiting.cancel()
        await asyncio.wait([waiting])
        found = await asyncio.gather(first, rewards.of(model, [Text(CONTEXT, "five ."), Text(CONTEXT, "six .")]))
        return [len(row) for ((*row,),) in found]

    assert asyncio.run(run()) == [1, 2]
    assert [text for text in tokenised if text != "two ."] == ["one .", "five .", "six ."]


def copies(folder, place, number: int) -> list[ServedModel]:
    """One kind of model, weights of their own."""
    found = []
    for index in range(number):
        made = models.load(folder)
        with models.seeded(index), torch.no_grad():
            made.model.get_input_embeddings().weight.normal_()
        models.save(made.model, made.tokenizer, place / str(index))
        model = ServedModel(f"c{index}", "full", str(place / str(index)), f"hash{index}", FormatConfig())
        found.append(replace(model, stamp=stamp(model)))
    return found


def answers(rewards: Rewards, wanted: list[ServedModel]) -> list[float]:
    found = asyncio.run(rewards.of(wanted, [Text(CONTEXT, "i like it .")]))
    return [reward.value for (reward,) in found]


@pytest.mark.parametrize(("gib", "num_reads"), [(8.0, 3), (0.0, 5)])
def test_the_next_model_takes_the_place_of_the_last_one(tiny_reward_model, tmp_path, monkeypatch, gib, num_reads):
    """More models than places, round and round: each answers as when it is alone, one was built, and files that stay mapped are
    read once."""
    all_of_them = copies(tiny_reward_model, tmp_path, 3)
    expected = []
    for model in all_of_them:
        scorer = load_whole(CONFIG, model)
        expected.append(float(scorer.score([CONTEXT], ["i like it ."]).rewards[0]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    built, read = [], []
    load, load_file = models.load, reloading.load_file
    monkeypatch.setattr(models, "load", lambda folder, **settings: built.append(folder) or load(folder, **settings))
    monkeypatch.setattr(reloading, "load_file", lambda path: read.append(path) or load_file(path))
    config = CONFIG.model_copy(update={"max_loaded_models": 1, "max_cached_rewards": 0, "max_mapped_gib": gib})
    loaded = load_models(config, Catalog({model.community: model for model in all_of_them}, "float32"))
    for _ in range(2):
        assert answers(Rewards(config, loaded), all_of_them) == pytest.approx(expected, abs=1e-6)
    assert len(built) == 1 and loaded.num_loads == 6 and len(read) == num_reads
    assert len({round(value, 3) for value in expected}) == 3


def test_a_model_that_cannot_take_its_place_costs_nobody_else(tiny_reward_model, tmp_path):
    all_of_them = copies(tiny_reward_model, tmp_path, 3)
    config = CONFIG.model_copy(update={"max_loaded_models": 1, "max_cached_rewards": 0})
    loaded = load_models(config, Catalog({model.community: model for model in all_of_them}, "float32"))
    before = answers(Rewards(config, loaded), all_of_them)
    (weights,) = (tmp_path / "1").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    for _ in range(2):
        with pytest.raises(ModelError, match="c1's model has changed"):
            answers(Rewards(config, loaded), [all_of_them[1]])
    damaged = replace(all_of_them[1], stamp=stamp(all_of_them[1]))
    with pytest.raises(ModelError, match="cannot be loaded as a reward model"):
        answers(Rewards(config, loaded), [damaged])
    assert answers(Rewards(config, loaded), [all_of_them[2], all_of_them[0]]) == [before[2], before[0]]


def test_a_scorer_of_another_kind_gives_its_memory_back_before_the_next_is_built(
    tiny_reward_model, tmp_path, monkeypatch
):
    first, second = served(tiny_reward_model, 2)
    dropped = load_whole(CONFIG, first)
    seen = []
    load = models.load

    def watched(folder, **settings):
        seen.append({parameter.device.type for parameter in dropped._model.parameters()})
        return load(folder, **settings)

    monkeypatch.setattr(models, "load", watched)
    assert load_whole(CONFIG, second, dropped) is not dropped
    assert seen == [{"meta"}]
