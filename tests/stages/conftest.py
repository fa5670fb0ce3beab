"""Prepared data, and clusters that are only described, for tests of what is known before anything runs."""

import pytest

from scpo_ray.capacity import Capacity
from scpo_ray.config import Config
from scpo_ray.stages import prepare
from tests.conftest import TINY

LAPTOP = Capacity(({"CPU": 2.0, "GPU": 0.0},), "this machine")
GPU_CLUSTER = Capacity(
    ({"CPU": 16.0}, *[{"CPU": 32.0, "GPU": 8.0, "accelerator_type:H100": 1.0}] * 2), "the cluster at x"
)


@pytest.fixture
def prepared(tmp_path) -> Config:
    config = Config(run_dir=str(tmp_path / "run"), **TINY)
    prepare.run(config)
    return config
