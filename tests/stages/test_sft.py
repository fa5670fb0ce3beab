"""The start policy: what it learns, what it must not see, and that a kill loses no more than the steps since a checkpoint."""

import numpy as np
import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.errors import ConfigError, DataError, ModelError
from scpo_ray.model_files import resolve
from scpo_ray.stages import prepare, recipes, sft
from scpo_ray.stages.sft import batches, read_lesson
from tests.stages.policy_runs import small_config


@pytest.fixture
def prepared(tmp_path):
    """Makes configs of a run directory with data alone."""

    def make(**sections: dict):
        config = small_config(str(tmp_path / "run"), **sections)
        prepare.run(config)
        return config

    return make


def test_every_response_comes_once_an_epoch():
    found = list(batches(10, batch_size=4, num_steps=6, seed=0))
    assert [len(rows) for rows in found] == [4, 4, 2, 4, 4, 2]
    for epoch in (found[:3], found[3:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(10))
    assert found[:3] != found[3:]
    assert list(batches(10, batch_size=4, num_steps=6, seed=0, first_step=2)) == found[2:]


def test_a_lesson_is_what_the_majority_chose(prepared):
    """Chosen responses of training pairs, each once, none to a test prompt; with where to stop."""
    config = prepared()
    directory = RunDirectory(config.run_dir)
    start = resolve(sft._start(config, directory))
    lesson = read_lesson(config, directory, start)
    pairs = directory.read_table("prepared/pairs.parquet").to_pandas()
    pairs = pairs[(pairs.community == "Atlas") & (pairs.split == "train")]
    from scpo_ray.ppo.prompts import is_test_group

    kept = pairs[[not is_test_group(group, salt="scpo", fraction=0.2) for group in pairs.prompt_group]]
    assert lesson.communities == ["Atlas"]
    assert len(lesson.sequences.responses) + lesson.num_too_long == kept.chosen_id.nunique() < pairs.chosen_id.nunique()
    from scpo_ray.models import load_tokenizer

    end = load_tokenizer(start).eos_token_id
    assert all(response.count(end) == 1 and response[-1] == end for response in lesson.sequences.responses)


def test_nothing_fits(prepared):
    config = prepared(format={"max_tokens": 8}, ppo={"max_response_tokens": 4})
    with pytest.raises(
        DataError, match=r"no chosen response of Atlas to learn from \(\d+ are longer than format.max_tokens 8\)"
    ):
        sft.run(config)


def test_an_unknown_community(prepared):
    with pytest.raises(ConfigError, match=r"sft.communities.*Nowhere"):
        sft.run(prepared(sft={"communities": ["Nowhere"]}))


def test_a_reward_model_is_no_policy(prepared, tiny_reward_model):
    config = prepared(sft={"policy": str(tiny_reward_model)})
    with pytest.raises(ModelError, match="LlamaForSequenceClassification is no causal language model; give a policy"):
        sft.run(config)


def test_an_encoder_writes_nothing(prepared):
    with pytest.raises(ModelError, match=r"sft.scratch.architecture: bert is an encoder and writes nothing; use llama"):
        sft.run(prepared(sft={"scratch": {"architecture": "bert"}}))


def test_an_interrupted_run_goes_on_from_its_checkpoint(ray_cluster, prepared, tmp_path, monkeypatch):
    """Interrupted after 13 steps with a checkpoint at 10: the losses are those of an undisturbed run, step by step."""
    settings = {"max_steps": 20, "checkpoint_every_steps": 10, "learning_rate": 3e-3}
    config = prepared(sft=settings)
    undisturbed = sft.run(config)
    directory = RunDirectory(config.run_dir)
    expected = directory.read_json(f"{recipes.START_POLICY}/metrics.json")["losses"]
    directory.remove(recipes.START_POLICY)

    taught: list[int] = []
    imitate = sft.Learners.imitate

    def interrupted(self, sequences, rows, **options):
        if len(taught) == 13:
            raise KeyboardInterrupt
        taught.append(1)
        return imitate(self, sequences, rows, **options)

    monkeypatch.setattr(sft.Learners, "imitate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sft.run(config)
    monkeypatch.setattr(sft.Learners, "imitate", imitate)
    assert directory.find(recipes.START_POLICY) is None
    resumed = sft.run(config)
    found = directory.read_json(f"{recipes.START_POLICY}/metrics.json")["losses"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert found[-1] < 0.7 * found[0]
    assert resumed.content_hash == undisturbed.content_hash
    assert directory.names("sft_checkpoints") == []
    assert sft.run(config).created == resumed.created
