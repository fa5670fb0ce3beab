"""One Ray cluster for the whole session, and the small things that many tests start from."""

import os
from pathlib import Path

import pytest

from scpo_ray import models
from scpo_ray.config import Config, ModelConfig


@pytest.fixture(scope="session")
def ray_cluster():
    """Two CPUs, as on a laptop; shared, because starting one takes seconds."""
    import ray

    from scpo_ray.runtime import connect

    # Read by the processes of the cluster: what an operator sets before `ray start` (docs/serving.md).
    os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "scpo_ray.serving.proxy:middlewares"
    os.environ["SCPO_SERVE_HEAD_TIMEOUT_S"] = "4"
    connect()
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_reward_model(tmp_path_factory) -> Path:
    """A random two-layer reward model with a word tokenizer, on disk."""
    folder = tmp_path_factory.mktemp("tiny_reward_model")
    words = [
        "what do you think of the new harbour , honestly ? i like it a lot because there is more room for all boats ."
    ]
    made = models.make(ModelConfig(vocab_size=200), texts=words, max_tokens=512, seed=7)
    models.save(made.model, made.tokenizer, folder)
    return folder


TINY = {
    "prepare": {
        "atlas": {
            "num_prompts": 40,
            "majority_annotators": 24,
            "minority_annotators": 10,
            "num_minorities": 2,
            "interactions_per_annotator": 6,
        }
    },
    "format": {"max_tokens": 96},
    "train_global": {"epochs": 2, "learning_rate": 2e-3},
    "train": {"epochs": 1, "learning_rate": 1e-3},
    "evaluate": {"num_resamples": 200},
}
"""A world and budgets small enough for a test of a stage; too small for claims about the method."""


FINISHED = TINY | {
    "select": {"controls": ["none"]},
    "score": {"precision": "float32"},
    "report": {"title": "A small world"},
}


@pytest.fixture(scope="session")
def finished_run(ray_cluster, tmp_path_factory) -> Config:
    """A small atlas run with SCPO and one control, from nothing to report."""
    from scpo_ray.stages import pipeline

    config = Config(run_dir=str(tmp_path_factory.mktemp("pipeline") / "run"), **FINISHED)
    assert pipeline.run(config) == f"{config.run_dir}/report.html"
    return config


@pytest.fixture(scope="session")
def controlled_run(ray_cluster, tmp_path_factory) -> Config:
    """A finished pipeline with controls, two seeds, another ruler and points of every curve; two steps a model."""
    from scpo_ray.stages import pipeline

    select = {"controls": ["none", "random", "other_ruler"], "curve_thresholds": [0.5, 0.6], "curve_shares": [0.5]}
    train = {"epochs": 1, "learning_rate": 1e-3, "max_steps": 2, "num_seeds": 2}
    config = Config(
        run_dir=str(tmp_path_factory.mktemp("controlled") / "run"), **TINY | {"select": select, "train": train}
    )
    pipeline.run(config)
    return config


@pytest.fixture(scope="session")
def policy_run(ray_cluster, tmp_path_factory) -> Config:
    """A small world with reward models of two seeds, a start policy, and a policy for each of two opposed communities."""
    from scpo_ray.stages import ppo
    from tests.stages.policy_runs import small_config, with_models

    config = small_config(str(tmp_path_factory.mktemp("policies") / "run"))
    with_models(config)
    ppo.run(config)
    return config


@pytest.fixture
def tiny_config(tmp_path):
    """Makes a small atlas config: `tiny_config(select={"agreement_threshold": 0.6})`; sections are merged over TINY."""

    def make(**sections: object) -> Config:
        merged = {
            key: {**TINY.get(key, {}), **sections.get(key, {})} for key in {*TINY, *sections} if key not in _SCALARS
        }
        scalars = {key: value for key, value in sections.items() if key in _SCALARS}
        return Config(**{"run_dir": str(tmp_path / "runs" / "run"), **merged, **scalars})

    return make


_SCALARS = ("run_dir", "seed", "rebuild")
