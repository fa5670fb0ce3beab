"""What tests of several stages start from."""

import pytest

from scpo_ray.config import Config
from tests.stages.policy_runs import small_config, with_models


@pytest.fixture(scope="session")
def policy_run(ray_cluster, tmp_path_factory) -> Config:
    """A small world with reward models of two seeds, a start policy, and a policy for each of two opposed communities."""
    from scpo_ray.stages import ppo

    config = small_config(str(tmp_path_factory.mktemp("policies") / "run"))
    with_models(config)
    ppo.run(config)
    return config
