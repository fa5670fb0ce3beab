"""A cluster beside the one that the tests share, with a token of its own."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scpo_ray import local_cluster, runtime
from scpo_ray.config.cluster import LocalClusterConfig, NodeShape

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")
JOB_S = 400


@dataclass(frozen=True)
class Cluster:
    config: LocalClusterConfig
    address: str
    """Of its job server."""
    environment: dict[str, str]
    """For commands that are to reach it, token included."""


@contextlib.contextmanager
def cluster(*nodes: NodeShape) -> Iterator[Cluster]:
    """Up, and down again with every process."""
    folder = tempfile.mkdtemp(prefix="rc", dir="/tmp")  # Ray's socket paths must be short
    config = LocalClusterConfig(
        nodes=nodes, port=local_cluster.free_port(), dashboard_port=local_cluster.free_port(), folder=folder
    )
    # Not what `runtime.connect` has set here for a laptop: a cluster's processes would take it over.
    left_out = {"RAY_ADDRESS", *runtime.LAPTOP_ENVIRONMENT}
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    environment = inherited | {"RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_AUTH_MODE": "token"}
    address = local_cluster.up(config, environment=environment)
    try:
        yield Cluster(config, address, environment | {"RAY_API_SERVER_ADDRESS": address})
    finally:
        local_cluster.down(config)
        shutil.rmtree(folder)


def submit(cluster: Cluster, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    """As the README says; waits until the job has ended."""
    return subprocess.run(
        [RAY, "job", "submit", "--working-dir", ".", "--", *entrypoint],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=JOB_S,
        check=False,
    )
