"""What a cluster may grow to: counted with what runs, refused where it is not understood."""

import json

import pytest

from scpo_ray import nodes
from scpo_ray.capacity import capacity
from scpo_ray.config import PpoConfig
from scpo_ray.config.training import OptimizationConfig
from scpo_ray.errors import ConfigError, TrainingError
from scpo_ray.ppo import placement
from scpo_ray.training.workers import check_resources


@pytest.fixture
def grows(ray_cluster, monkeypatch):
    def to(*kinds: dict) -> None:
        monkeypatch.setenv(nodes.AUTOSCALING, json.dumps(kinds))

    return to


def test_nodes_that_run_are_not_counted_again(grows, ray_cluster):
    cpus = ray_cluster.cluster_resources()["CPU"]
    assert nodes.totals() == {"CPU": cpus, "GPU": 0.0} and not nodes.can_grow()
    grows({"nodes": 1, "CPU": cpus})
    assert nodes.totals() == {"CPU": cpus, "GPU": 0.0} and not nodes.can_grow()
    grows({"nodes": 3, "CPU": cpus}, {"nodes": 2, "CPU": 16, "GPU": 8})
    assert nodes.totals() == {"CPU": 3 * cpus + 32, "GPU": 16.0} and nodes.can_grow()
    assert capacity().nodes[1:] == ({"CPU": cpus}, {"CPU": cpus}, *[{"CPU": 16.0, "GPU": 8.0}] * 2)
    assert capacity().totals == nodes.totals()


def test_what_may_be_added_is_not_refused(grows):
    """By the stages themselves; before, they looked at what runs, and no autoscaler was ever asked for a node."""
    training = OptimizationConfig(num_workers=8, use_gpu=True)
    policies = placement.layout(PpoConfig(gpus_per_engine=1, gpus_per_learner=1))
    with pytest.raises(TrainingError, match="8 training workers need 8 CPU, the cluster has 2"):
        check_resources(training, 1)
    with pytest.raises(ConfigError, match="the cluster has 0"):
        placement.check(policies, nodes.totals())
    grows({"nodes": 1, "CPU": 16, "GPU": 8})
    check_resources(training, 1)
    placement.check(policies, nodes.totals())
    with pytest.raises(TrainingError, match="16 training workers need 16 GPU, the cluster has 8"):
        check_resources(training, 2)


@pytest.mark.parametrize(
    "said",
    [
        "four",
        "4",
        '[{"CPU": 4}]',
        '[{"nodes": "many", "CPU": 4}]',
        '[["nodes", 4]]',
        '[{"nodes": 1e400, "CPU": 4}]',
        '[{"nodes": -1, "CPU": 4}]',
        '[{"nodes": 1.5, "CPU": 4}]',
        '[{"nodes": 2, "cpu": 4}]',
        '[{"nodes": 2, "CPU": -4}]',
        '[{"nodes": 2, "CPU": NaN}]',
    ],
)
def test_what_cannot_be_read_is_refused(ray_cluster, monkeypatch, said):
    monkeypatch.setenv(nodes.AUTOSCALING, said)
    with pytest.raises(ConfigError, match=r"SCPO_AUTOSCALING: .* it is a list like"):
        nodes.totals()
