"""Which bundle each actor is in, and what is refused before anything waits."""

import pytest

from scpo_ray.config import PpoConfig, SftConfig
from scpo_ray.errors import ConfigError
from scpo_ray.ppo.placement import check, layout

GPUS = {
    "num_engines": 2,
    "num_learners": 2,
    "num_scorers": 1,
    "gpus_per_engine": 0.4,
    "gpus_per_learner": 0.5,
    "gpus_per_scorer": 0.1,
    "cpus_per_engine": 1,
    "cpus_per_learner": 1,
    "cpus_per_scorer": 1,
}


def test_apart_every_actor_has_a_bundle_of_its_own():
    found = layout(PpoConfig(**GPUS))
    assert found.bundles == [
        {"CPU": 1, "GPU": 0.4},
        {"CPU": 1, "GPU": 0.4},
        {"CPU": 1, "GPU": 0.1},
        {"CPU": 1, "GPU": 0.5},
        {"CPU": 1, "GPU": 0.5},
    ]
    assert sorted(found.bundle_of.values()) == [0, 1, 2, 3, 4]


def test_colocated_the_ith_actors_share_one():
    found = layout(PpoConfig(**GPUS, placement="colocated"))
    assert found.bundles == [{"CPU": 3, "GPU": 1.0}, {"CPU": 2, "GPU": 0.9}]
    assert found.bundle_of["engine", 1] == found.bundle_of["learner", 1] == 1
    assert found.bundle_of["scorer", 0] == 0


def test_sft_has_learners_alone():
    assert layout(SftConfig(num_learners=2), ("learner",)).bundles == [{"CPU": 1}, {"CPU": 1}]


@pytest.mark.parametrize("placement", ["apart", "colocated"])
def test_too_few_gpus(placement):
    plan = layout(PpoConfig(**GPUS, placement=placement))
    with pytest.raises(
        ConfigError,
        match=r"2 engines of 0.4, 1 scorers of 0.1, 2 learners of 0.5 need 1.9 GPU, the cluster has 1; lower",
    ):
        check(plan, {"CPU": 16.0, "GPU": 1.0})
    check(plan, {"CPU": 16.0, "GPU": 2.0})
