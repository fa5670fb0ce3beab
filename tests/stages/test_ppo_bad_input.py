"""What cannot work is said in one line before an actor starts."""

import shutil
import sys
from pathlib import Path

import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.errors import ArtifactError, ConfigError, DataError, ModelError, ScpoError
from scpo_ray.ppo.prompts import load
from scpo_ray.stages import best_of_n, ppo
from tests.stages.policy_runs import small_config


@pytest.fixture(scope="module")
def made(policy_run, tmp_path_factory) -> str:
    """Reward models and a start policy; no policies yet."""
    place = tmp_path_factory.mktemp("refused")
    left_out = shutil.ignore_patterns("pol*", "ppo.html", "best_of_n*", "composed*", "logs")
    for name in ("run", "score_cache"):
        shutil.copytree(Path(policy_run.run_dir).parent / name, place / name, ignore=left_out)
    return str(place / "run")


CASES = {
    "unknown community": ({"ppo": {"communities": ["Nowhere"]}}, ConfigError, r"ppo\.communities.*Nowhere"),
    "unknown community in weights": (
        {"ppo": {"weights": {"Nowhere": 1.0}}},
        ConfigError,
        r"ppo\.weights: 'Nowhere' is none of the communities",
    ),
    "no room for a response": (
        {"ppo": {"max_response_tokens": 79}},
        DataError,
        r"no prompt is left to measure policies on|no training prompt that leaves room for a response \(\d+ are too long\)",
    ),
    "a logger that is not installed": (
        {"ppo": {"loggers": ["wandb"]}},
        ConfigError,
        r"ppo\.loggers: wandb cannot be imported .*pip install wandb, or leave it out",
    ),
    "another run's start policy": (
        {"sft": {"learning_rate": 1.0}},
        ArtifactError,
        r"start_policy: .*sft\.learning_rate.*remake it with jobs/sft\.py",
    ),
    "a reward model as policy": (
        {"ppo": {"policy": "{run}/global_model"}},
        ModelError,
        r"LlamaForSequenceClassification is no causal language model; give a policy",
    ),
    "no such policy": ({"ppo": {"policy": "{run}/nothing"}}, ScpoError, r"nothing"),
    "more GPUs than there are": (
        {"ppo": {"gpus_per_engine": 1.0, "num_engines": 3, "cpus_per_engine": 0.1}},
        ConfigError,
        r"3 engines of 1 need 3 GPU, the cluster has 0; lower num_engines",
    ),
    "more CPUs than there are": (
        {"ppo": {"num_learners": 100}},
        ConfigError,
        r"100 learners of 0\.5 need 50\.75 CPU, the cluster has 2",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", [ppo, best_of_n], ids=["ppo", "best_of_n"])
def test_refused_in_one_line(made, case, stage, monkeypatch):
    sections, kind, message = CASES[case]
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(stage, "scales", None)  # whoever starts to score fails
    if stage is best_of_n and "logger" in case:
        pytest.skip("it logs no steps")
    settings = {
        name: value.replace("{run}", made) if isinstance(value, str) else value
        for name, value in sections.get("ppo", {}).items()
    }
    config = small_config(made, **sections | ({"ppo": settings} if settings else {}))
    with pytest.raises(kind, match=message) as raised:
        stage.run(config)
    assert "\n" not in str(raised.value)
    assert RunDirectory(made).names("policies") == []


def test_reward_models_first(tmp_path):
    from scpo_ray.stages import prepare

    config = small_config(str(tmp_path / "run"))
    prepare.run(config)
    with pytest.raises(ArtifactError, match=r"run jobs/\w+\.py first"):
        ppo.run(config)


def test_long_prompts_are_left_out_and_counted(made):
    """Of all prompts those that leave no room for a response; the others are used."""
    from scpo_ray.formatting import Formatter
    from scpo_ray.models import load_tokenizer

    config, directory = small_config(made), RunDirectory(made)
    formatter = Formatter(load_tokenizer(directory.fetch("start_policy")), config.format)
    known = {"salt": "scpo", "test_fraction": 0.2}
    every = load(directory, formatter, max_prompt_tokens=100, **known)
    lengths = [len(prompt.token_ids) for prompt in [*every.train, *every.test]]
    limit = sorted(lengths)[len(lengths) // 2]
    some = load(directory, formatter, max_prompt_tokens=limit, **known)
    assert every.num_too_long == 0
    assert some.num_too_long == sum(length > limit for length in lengths) > 0
    assert len(some.train) + len(some.test) + some.num_too_long == len(lengths)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"advantage": "grpo"},
            "advantage grpo compares a prompt's responses, but responses_per_prompt is 1; set it to 2",
        ),
        ({"prompts_per_step": 2, "num_minibatches": 4}, "num_minibatches 4 of 2 responses; lower it"),
        (
            {"transfer": "nccl"},
            "transfer nccl joins whole GPUs, but gpus_per_engine is 0 and gpus_per_learner 0; set both",
        ),
        (
            {"transfer": "nccl", "gpus_per_engine": 1, "gpus_per_learner": 1, "overlap": True},
            "transfer nccl leaves no weights for an engine that starts again",
        ),
        ({"kl_budget": 1.0, "kl_coefficient": 0.0}, "kl_budget multiplies kl_coefficient, which is 0"),
        ({"kl_budget": 1.0, "kl_horizon": 10.0}, "kl_horizon 10 is not above a fifth of the 64 responses of a step"),
        ({"kl_coefficient": -0.1}, "greater than or equal to 0"),
        ({"temperature": 0}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        small_config(str(tmp_path), ppo=settings)
