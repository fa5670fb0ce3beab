"""A cluster whose nodes come with the work: nothing is there when the job is submitted, and what it asks for comes."""

import json
import time
from pathlib import Path

import httpx
import pytest

from scpo_ray import nodes
from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import dump_yaml
from scpo_ray.config import Config
from scpo_ray.config.cluster import NodeShape
from scpo_ray.local_cluster import end_node, start_node
from tests.chaos.faults import submitted
from tests.clusters import Cluster, cluster
from tests.conftest import TINY

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
SECOND = NodeShape(name="second", num_cpus=2)


def test_a_job_waits_for_the_nodes_that_it_asks_for(tmp_path, monkeypatch):
    """The second node stands for the autoscaler's: it comes once Ray has heard that somebody wants it."""
    monkeypatch.setenv(nodes.AUTOSCALING, json.dumps([{"nodes": 1, "CPU": 2}]))
    settings = TINY | {"select": {"controls": ()}, "train": TINY["train"] | {"num_worker_groups": 2}}
    config = Config(run_dir=str(tmp_path / "run"), **settings)
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    with cluster(NodeShape(name="head", num_cpus=0), SECOND) as grows:
        for job, needs in (("prepare", False), ("train_global", True), ("score", True)):
            end_node(grows.config, SECOND.name)
            command = ["python", f"jobs/{job}.py", "--config", str(tmp_path / "config.yaml")]
            with submitted(grows, command) as (run, output):
                if needs:
                    await_demand(grows, run, output)
                    start_node(grows.config, SECOND.name, environment=grows.environment)
                run.wait(300)
                assert run.returncode == 0, output.read_text()
    assert RunDirectory(config.run_dir).find("scores") is not None


def await_demand(grows: Cluster, run, output: Path) -> None:
    """Until the autoscaler knows of CPUs that nobody has."""
    headers = {"Authorization": f"Bearer {grows.environment['RAY_AUTH_TOKEN']}"}
    end = time.monotonic() + 120
    while True:
        answer = httpx.get(f"{grows.address}/api/cluster_status", headers=headers, timeout=30).raise_for_status()
        report = (answer.json()["data"]["clusterStatus"] or {}).get("loadMetricsReport") or {}
        if any("CPU" in str(report.get(name)) for name in ("resourceDemand", "pgDemand")):
            return
        assert run.poll() is None and time.monotonic() < end, f"{output.read_text()}\n{answer.text}"
        time.sleep(0.5)
