"""Scorers read texts through each model's own tokenizer and template, and compute each distinct response once."""

from pathlib import Path

import pytest

from scpo_ray import models
from scpo_ray.config import FormatConfig, ModelConfig, ScoreConfig
from scpo_ray.errors import ConfigError
from scpo_ray.ppo.records import Answer, Rewards
from scpo_ray.ppo.reward import Scorers
from scpo_ray.scoring import RewardScorer

CONTEXT = [{"role": "user", "content": "how should i fix the boat ?"}]
TEXTS = ["what do you think", "of the new harbour", "what do you think"]


class Recorded:
    """A pool of reward actors in this process, which notes what it is asked."""

    def __init__(self, folders: dict[str, str]) -> None:
        from scpo_ray.ppo.reward import RewardActor

        self._actor = RewardActor(folders, FormatConfig(max_tokens=64), ScoreConfig(precision="float32"), threads=1)
        self.asked: list[tuple[str, int]] = []

    def __len__(self) -> int:
        return 1

    def submit(self, index, method, *arguments):
        self.asked.append((arguments[0], len(arguments[1])))
        return method, arguments

    def collect(self, calls):
        return [getattr(self._actor, method)(*arguments) for method, arguments in calls]


@pytest.fixture
def encoder(tmp_path) -> Path:
    """Another tokenizer, no chat template, another architecture than the policy's."""
    made = models.make(
        ModelConfig(architecture="bert"), texts=["what do you think of the new harbour"], max_tokens=64, seed=1
    )
    models.save(made.model, made.tokenizer, tmp_path / "encoder")
    return tmp_path / "encoder"


def test_models_with_other_tokenizers_read_the_same_text(tiny_reward_model, encoder):
    folders = {"decoder": str(tiny_reward_model), "encoder": str(encoder)}
    pool = Recorded(folders)
    answers = [Answer(CONTEXT, text) for text in TEXTS]
    rewards = Scorers(pool, list(folders)).score({"encoder": answers, "decoder": answers[:1]})
    found = {name: each.values for name, each in rewards.items()}
    assert pool.asked == [("encoder", 2), ("decoder", 1)]
    for name, texts in (("encoder", TEXTS), ("decoder", TEXTS[:1])):
        scorer = RewardScorer(
            Path(folders[name]), format_config=FormatConfig(max_tokens=64), tokens_per_batch=8192, precision="float32"
        )
        expected = [float(scorer.score([CONTEXT], [text]).rewards[0]) for text in texts]
        assert found[name] == pytest.approx(expected, abs=1e-5)
    assert found["encoder"][0] == found["encoder"][2] != found["encoder"][1]


def test_what_a_model_cannot_read_whole_is_marked(tiny_reward_model):
    rewards = Scorers(Recorded({"a": str(tiny_reward_model)}), ["a"]).score(
        {"a": [Answer(CONTEXT, "what do you think"), Answer(CONTEXT, "think " * 80)]}
    )
    assert rewards["a"].truncated == [False, True]


def test_an_unknown_model(tiny_reward_model):
    scorers = Scorers(Recorded({"a": str(tiny_reward_model)}), ["a"])
    with pytest.raises(ConfigError, match="'b': no reward model of that name; there are a"):
        scorers.score({"b": [Answer(CONTEXT, "x")]})


def test_nobody_asked(tiny_reward_model):
    pool = Recorded({"a": str(tiny_reward_model)})
    assert Scorers(pool, ["a"]).score({"a": []}) == {"a": Rewards([], [])}
    assert pool.asked == []
