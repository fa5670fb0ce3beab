"""From raw rewards to what a policy is trained on, with hand-worked values."""

import math

import pytest
from torch.testing import assert_close

from scpo_ray.config import PpoConfig
from scpo_ray.errors import ConfigError, ModelError
from scpo_ray.ppo.objective import Scale, Target, questions, scores, targets
from scpo_ray.ppo.records import Prompt, Rewards, Rollout, Sample

SCALES = {"A": Scale(1.0, 2.0), "B": Scale(0.0, 0.5)}
FREE = PpoConfig(reward_clip=None, unfinished_penalty=0.0)


def raw(values: dict[str, list[float]]) -> dict[str, Rewards]:
    """As scorers answer; the first response was too long for each model."""
    return {name: Rewards(each, [True] + [False] * (len(each) - 1)) for name, each in values.items()}


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def rollout(text: str, *, community: str = "A", num_tokens: int = 3, is_finished: bool = True) -> Rollout:
    sample = Sample((9,) * num_tokens, (-1.0,) * num_tokens, is_finished, 0)
    return Rollout(Prompt("p", "g", community, [{"role": "user", "content": "?"}], (1,)), sample, text)


ROLLOUTS = [rollout("x"), rollout("", community="B", num_tokens=1), rollout("y", community="B", is_finished=False)]
RAW = {"A": [3.0, -1.0], "B": [1.0, -0.5]}
"""Of the two responses with text. Normalised: A +1, -1; B +2, -1."""


def test_responses_without_text_are_nobodys():
    assert questions(Target("mixture", ("A", "B"), "mixture"), ROLLOUTS) == {"A": [0, 2], "B": [0, 2]}


def test_routing_asks_the_prompts_own_model():
    target = Target("routed", ("A", "B"), "routed")
    assert questions(target, ROLLOUTS) == {"A": [0], "B": [2]}
    found = scores(target, ROLLOUTS, raw({"A": [3.0], "B": [-0.5]}), scales=SCALES, config=FREE)
    assert_close(found.final.tolist(), [1.0, -3.0, -1.0])
    assert math.isnan(found.normalised["A"][2]) and math.isnan(found.normalised["B"][0])
    assert found.normalised["B"][1] == -3.0


@pytest.mark.parametrize(
    ("composition", "weights", "expected"),
    [
        ("mixture", {}, [1.5, -3.0, -1.0]),
        ("mixture", {"A": 3.0}, [1.25, -3.0, -1.0]),
        ("max_min", {}, [1.0, -3.0, -1.0]),  # A's mean (1 - 3 - 1) / 3 is below B's (2 - 3 - 1) / 3
        ("conjunction", {}, [(log_sigmoid(1.0) + log_sigmoid(2.0)) / 2, log_sigmoid(-3.0), log_sigmoid(-1.0)]),
    ],
)
def test_compositions(composition, weights, expected):
    config = FREE.model_copy(update={"weights": weights})
    found = scores(Target(composition, ("A", "B"), composition), ROLLOUTS, raw(RAW), scales=SCALES, config=config)
    assert_close(found.final.tolist(), expected)


def test_what_is_counted_and_what_it_costs():
    config = PpoConfig(reward_clip=0.8, unfinished_penalty=0.5, length_penalty=0.1, empty_reward=-2.0)
    found = scores(Target("A", ("A",), "each"), ROLLOUTS, raw({"A": RAW["A"]}), scales=SCALES, config=config)
    assert (found.num_empty, found.num_unfinished, found.num_truncated) == (1, 1, 1)
    assert_close(found.final.tolist(), [0.8 - 0.3, -0.8 - 0.1, -0.8 - 0.5 - 0.3])


def test_a_reward_that_is_not_finite_stops_with_the_response():
    with pytest.raises(ModelError, match=r"A: reward nan for response 'y'"):
        scores(Target("A", ("A",), "each"), ROLLOUTS, raw({"A": [1.0, math.nan]}), scales=SCALES, config=FREE)


def test_policies_that_a_config_asks_for():
    found = targets(PpoConfig(compositions=("each", "max_min")), ["A", "B"])
    assert [(target.name, target.communities) for target in found] == [
        ("A", ("A",)),
        ("B", ("B",)),
        ("max_min", ("A", "B")),
    ]


@pytest.mark.parametrize(
    ("settings", "communities", "message"),
    [
        ({"weights": {"Nowhere": 2.0}}, ["A", "B"], "ppo.weights: 'Nowhere' is none of the communities A, B"),
        ({"compositions": ("max_min",)}, ["A"], r"ppo.compositions: max_min of one community \(A\)"),
    ],
)
def test_what_cannot_be_composed(settings, communities, message):
    with pytest.raises(ConfigError, match=message):
        targets(PpoConfig(**settings), communities)
