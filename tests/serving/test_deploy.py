"""`serve deploy` of the YAML that is shipped, on a cluster of its own that asks for a token."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from scpo_ray.config.cluster import NodeShape
from scpo_ray.local_cluster import free_port
from tests.clusters import Cluster, cluster
from tests.serving.conftest import TOKEN, eventually

SHIPPED = Path(__file__).parents[2] / "serve/reward.yaml"
SERVE = str(Path(sys.executable).with_name("serve"))
MARKER = "a thought that nobody else may read"


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    with cluster(NodeShape(name="head", num_cpus=8)) as one:
        yield one


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


def deploy(own_cluster: Cluster, folder: Path, port: int, **arguments: object) -> None:
    """The shipped file with another run, port and tokens, and an autoscaler that a small load moves at once."""
    content = yaml.safe_load(SHIPPED.read_text())
    content["http_options"]["port"] = port
    (application,) = content["applications"]
    application["args"] = arguments
    application["deployments"][0]["autoscaling_config"] |= {
        "target_ongoing_requests": 2,
        "max_replicas": 2,
        "upscale_delay_s": 1,
    }
    file = folder / "reward.yaml"
    file.write_text(yaml.safe_dump(content))
    subprocess.run(
        [SERVE, "deploy", str(file), "--address", own_cluster.address],
        check=True,
        capture_output=True,
        env=own_cluster.environment,
    )


def status(own_cluster: Cluster) -> dict:
    shown = subprocess.run(
        [SERVE, "status", "--address", own_cluster.address],
        check=True,
        capture_output=True,
        text=True,
        env=own_cluster.environment,
    )
    return yaml.safe_load(shown.stdout)["applications"]["rewards"]


def num_running(own_cluster: Cluster) -> int:
    found = status(own_cluster)
    assert found["status"] != "DEPLOY_FAILED", found["message"]
    return found["deployments"].get("rewards", {}).get("replica_states", {}).get("RUNNING", 0)


async def load_until(url: str, done: asyncio.Event) -> list[int]:
    """Sixteen callers without a pause; the statuses that they saw."""
    seen = []

    async def caller(client: httpx.AsyncClient, number: int) -> None:
        while not done.is_set():
            number += 16
            body = {"prompt": f"{MARKER} {number}", "responses": ["yes .", "no ."] * 20}
            seen.append((await client.post(f"{url}/v1/score", json=body)).status_code)

    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=90) as client:
        await asyncio.gather(*(caller(client, number) for number in range(16)))
    return seen


def test_the_yaml_deploys_scales_rolls_over_and_logs_no_text(
    own_cluster, port, tmp_path, controlled_run, adapter_run, tokens_file, ask
):
    url = f"http://127.0.0.1:{port}"
    deploy(own_cluster, tmp_path, port, run_dir=controlled_run.run_dir, tokens_file=str(tokens_file))
    eventually(lambda: num_running(own_cluster) == 1, seconds=60)
    first = ask.get(f"{url}/v1/communities").json()
    assert ask.post(f"{url}/v1/score", json={"prompt": MARKER, "responses": [5]}).status_code == 422

    async def scaled() -> list[int]:
        done = asyncio.Event()
        load = asyncio.create_task(load_until(url, done))
        await asyncio.to_thread(eventually, lambda: num_running(own_cluster) == 2, seconds=60)
        done.set()
        return await load

    assert set(asyncio.run(scaled())) <= {200, 429, 503}

    deploy(own_cluster, tmp_path, port, run_dir=adapter_run.run_dir, authentication="off")
    eventually(lambda: ask.get(f"{url}/v1/communities").json()["run"] != first["run"], seconds=60)
    eventually(lambda: status(own_cluster)["status"] == "RUNNING", seconds=60)
    assert httpx.get(f"{url}/v1/communities").status_code == 200

    time.sleep(1)  # logs are written behind
    logs = Path(own_cluster.config.folder, "head/session_latest/logs")
    texts = [file.read_text(errors="replace") for file in logs.rglob("*") if file.is_file()]
    assert any("POST /v1/score 200" in text for text in texts)
    assert any("authentication is off: whoever reaches this port may ask" in text for text in texts)
    for secret in (MARKER, TOKEN, own_cluster.environment["RAY_AUTH_TOKEN"]):
        assert not any(secret in text for text in texts)
