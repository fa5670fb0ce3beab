"""The head is lost, and with it the cluster, the driver and what they knew: the next cluster goes on from the disk."""

import httpx
import pytest

from scpo_ray import local_cluster
from scpo_ray.config.cluster import NodeShape
from scpo_ray.local_cluster import end_node
from scpo_ray.stages import pipeline
from tests.chaos.faults import Finished, Schedule, disturb, left_over, submitted
from tests.chaos.jobs import pipeline_job
from tests.chaos.test_preemption import await_
from tests.clusters import Cluster, cluster

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
NODES = (NodeShape(name="head", num_cpus=2), NodeShape(name="second", num_cpus=2, resources={"second": 1}))


def test_the_next_cluster_goes_on_with_the_driver_on_a_worker_node(ray_cluster, tmp_path):
    """Bit for bit, and nothing that was finished is made again."""
    calm, disturbed = pipeline_job(tmp_path / "calm/run"), pipeline_job(tmp_path / "disturbed/run", on_both_nodes=True)
    pipeline.run(calm.config)
    with cluster(*NODES) as two_nodes:
        with submitted(two_nodes, disturbed.command()) as (run, _):
            await_(run, lambda: any(disturbed.run_dir.glob("checkpoints/*/step_*")) and trained(disturbed.run_dir))
            finished = Finished(disturbed.run_dir)
            end_node(two_nodes.config, "head", at_once=True)
        assert trained(disturbed.run_dir) and not (disturbed.run_dir / "evaluation").exists()
        local_cluster.down(two_nodes.config)
        local_cluster.up(two_nodes.config, environment=two_nodes.environment)
        options = ("--entrypoint-resources", '{"second": 1}')
        outcome = disturb(two_nodes, disturbed.command(), disturbed.run_dir, Schedule(0, num_faults=0), options=options)
        assert outcome.submissions == 1 and outcome.lost == finished.check() == []
        assert not any(ran_on_the_head(two_nodes))
        assert left_over(two_nodes, disturbed.command(), disturbed.run_dir) == []
    assert disturbed.result(disturbed.config) == calm.result(calm.config)


def trained(run_dir) -> bool:
    """A reward model is finished; others are not."""
    return any(run_dir.glob("reward_models/*/manifest.json"))


def ran_on_the_head(two_nodes: Cluster) -> list[bool]:
    """Of every job's driver since the cluster came up."""
    headers = {"Authorization": f"Bearer {two_nodes.environment['RAY_AUTH_TOKEN']}"}

    def asked(path: str):
        return httpx.get(f"{two_nodes.address}{path}", headers=headers, timeout=30).raise_for_status().json()

    (head,) = (
        node["raylet"]["nodeId"]
        for node in asked("/nodes?view=summary")["data"]["summary"]
        if node["raylet"]["isHeadNode"]
    )
    jobs = [job for job in asked("/api/jobs/") if job["type"] == "SUBMISSION"]
    assert jobs
    return [job["driver_node_id"] == head for job in jobs]
