"""A tiny policy on disk, and one engine for all tests that need one."""

from pathlib import Path

import pytest

from scpo_ray import policies
from scpo_ray.config import ModelConfig

WORDS = ["ask your elders and then fix the old boat with care because it is yours , or sell it and be done with it ."]
TEMPERATURE = 0.8


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory) -> Path:
    """Two layers with weights far from uniform, so that a wrong position or an old weight shows."""
    import torch

    folder = tmp_path_factory.mktemp("tiny_policy")
    made = policies.make(ModelConfig(hidden_size=64), texts=WORDS, max_tokens=64, seed=3)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.mul_(2.5 if parameter.ndim > 1 else 1.0)
    policies.save(made, folder)
    return folder


@pytest.fixture(scope="session")
def engine_spec(tiny_policy):
    from scpo_ray.ppo.rollout import EngineSpec

    return EngineSpec(
        policy=str(tiny_policy),
        max_tokens=64,
        max_response_tokens=12,
        stop_token_ids=(5,),
        temperature=TEMPERATURE,
        precision="float32",
        threads=1,
        cache_gib=1,
        gpu_memory_utilization=0.5,
        uses_gpu=False,
    )


@pytest.fixture(scope="module")
def engine(ray_cluster, engine_spec):
    """A running vLLM engine in an actor of its own."""
    from scpo_ray.ppo.rollout import RolloutEngine

    actor = ray_cluster.remote(RolloutEngine).options(num_cpus=0.1).remote(engine_spec)
    ray_cluster.get(actor.load.remote())
    yield actor
    ray_cluster.kill(actor)
