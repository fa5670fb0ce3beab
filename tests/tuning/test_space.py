"""The search space: what is refused before anything starts, and which points come out."""

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from scpo_ray.cli import load_config
from scpo_ray.config import Config, SearchRange
from scpo_ray.errors import ConfigError
from scpo_ray.tuning.space import check_space, describe, grid, random_point, with_point

EXPERIMENTS = Path(__file__).parents[2] / "jobs/experiments"
TAU, BETA, RATE = "select.agreement_threshold", "select.weight_temperature", "train.learning_rate"


def config_with(space: dict, **tune: object) -> Config:
    return Config(tune={"space": space, **tune})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "tune.space is empty; name settings to search"),
        ({"select.agreement_treshold": {"uniform": [0.5, 0.9]}}, f"unknown key; did you mean {TAU}"),
        ({"prepare.test_fraction": {"uniform": [0.1, 0.5]}}, "trials share the data and the global model"),
        ({"train.num_workers": {"integers": [1, 2]}}, "changes cost, not the result"),
        ({"train.num_seeds": {"integers": [1, 2]}}, "cannot be searched: a trial trains once"),
        ({TAU: {"uniform": [0.5, 1.5]}}, f"tune.space.{TAU}: 1.5: Input should be less than 1"),
        ({"select.strategy": {"choice": ["filter", "filtr"]}}, "tune.space.select.strategy: 'filtr': Input should be"),
        ({"train.lora.rank": {"integers": [0, 8]}}, "tune.space.train.lora.rank: 0: Input should be greater than"),
    ],
)
def test_a_wrong_space_is_refused(space, message):
    with pytest.raises(ConfigError) as refused:
        check_space(config_with(space))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({}, "give exactly one of"),
        ({"uniform": [0, 1], "choice": [1, 2]}, "give exactly one of"),
        ({"uniform": [1, 0.5]}, "the lowest value 1 must be below the highest 0.5"),
        ({"loguniform": [0, 1]}, "has no logarithm"),
        ({"choice": [1]}, "two or more different values"),
        ({"choice": [1, 2], "step": 1}, "step belongs to uniform"),
        ({"uniform": [0, 1], "step": 2}, "wider than the range"),
    ],
)
def test_a_wrong_range_is_refused(search, message):
    with pytest.raises(ValidationError, match=message):
        SearchRange(**search)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"search": "grid", "space": {BETA: {"loguniform": [0.1, 10]}}}, "a grid needs choice, integers"),
        ({"stopping": "asha", "objectives": ["acquisition", "retention"]}, "compares trials by one objective"),
        ({"num_trials": 0}, "greater than or equal to 1"),
        ({"time_budget_s": 0}, "greater than 0"),
        ({"name": "../elsewhere"}, "should match pattern"),
    ],
)
def test_a_search_that_cannot_be(tune, message):
    with pytest.raises(ValidationError, match=message):
        Config(tune=tune)


def test_a_point_is_a_configuration():
    config = Config(select={"strategy": "filter_weight", "agreement_threshold": 0.6}, seed=3)
    point = {BETA: 2.5, "train.lora.enabled": True, "train.lora.rank": 4, "select.calibrate": True}
    found = with_point(config, point)
    assert (found.select.weight_temperature, found.select.agreement_threshold, found.select.calibrate) == (
        2.5,
        0.6,
        True,
    )
    assert (found.train.lora.enabled, found.train.lora.rank, found.seed) == (True, 4, 3)
    assert config.select.weight_temperature == 1.1, "the configuration itself stays"


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"the trial: .*max_steps_overrides_epochs is true, but max_steps is unset"):
        with_point(Config(), {"train.max_steps_overrides_epochs": True})


def test_the_grid_has_every_combination_once():
    space = {TAU: SearchRange(uniform=(0.5, 0.7), step=0.1), "train.lora.rank": SearchRange(integers=(1, 2))}
    points = grid(space)
    assert sorted((point[TAU], point["train.lora.rank"]) for point in points) == [
        (0.5, 1), (0.5, 2), (0.6, 1), (0.6, 2), (0.7, 1), (0.7, 2)
    ]  # fmt: skip
    assert points == grid(space), "in an order of its own"


def test_random_points_are_their_numbers_own():
    space = {BETA: SearchRange(loguniform=(0.1, 10.0)), "select.strategy": SearchRange(choice=("filter", "weight"))}
    points = [random_point(space, seed=1, number=number) for number in range(400)]
    assert points[7] == random_point(space, seed=1, number=7) != random_point(space, seed=2, number=7)
    logs = [math.log10(point[BETA]) for point in points]
    assert min(logs) > -1 and max(logs) < 1 and abs(sum(logs) / 400) < 0.1, "as many below 1 as above"
    assert 150 < sum(point["select.strategy"] == "filter" for point in points) < 250


def test_points_for_people():
    assert describe({TAU: 0.7, RATE: 2e-5, "select.strategy": "filter"}) == (
        "agreement_threshold 0.7, learning_rate 2e-05, strategy filter"
    )


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"train.lora.rank": {"uniform": [4, 32]}},
            r"train\.lora\.rank: 12\.9\d*: .*valid integer.*; search integers or a choice",
        ),
        ({"train.max_steps": {"uniform": [10, 100], "step": 2.5}}, r"train\.max_steps: 12\.5: .*search integers"),
        ({"train.learning_rate": {"choice": ["1e-5", 1e-3]}}, r"learning_rate: '1e-5' is text to YAML; write 1\.0e-05"),
        ({"select.agreement_threshold": {"choice": [0.7, "0.7"]}}, r"'0\.7' is text to YAML; write 0\.7"),
    ],
)
def test_values_that_every_trial_would_trip_over_are_refused(space, message):
    """Both ends of the first two ranges are whole numbers; what lies between is not."""
    with pytest.raises(ConfigError, match=message):
        check_space(Config(tune={"space": space}))


def test_values_need_only_be_legal_beside_some_of_the_others():
    steps = {"train.max_steps": {"choice": [10, 20]}}
    check_space(Config(tune={"space": steps | {"train.max_steps_overrides_epochs": {"choice": [True, False]}}}))
    with pytest.raises(ConfigError, match="max_steps is unset"):
        check_space(Config(tune={"space": {"train.max_steps_overrides_epochs": {"choice": [True, False]}}}))


@pytest.mark.parametrize("name", ["tune_demo", "tune_global_opinions"])
def test_the_experiments_can_be_searched(name, monkeypatch):
    monkeypatch.setenv("SCPO_REAL_DATA", "data")
    config = load_config(["--config", str(EXPERIMENTS / f"{name}.yaml")])
    check_space(config)
    assert config.prepare.validation_fraction == 0.2
