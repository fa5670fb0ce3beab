"""A node that is taken away with notice, as a cloud does with spot machines: Ray is told that it drains, and then it is gone."""

import subprocess
import time
from pathlib import Path

import httpx
import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import dump_yaml
from scpo_ray.config import Config
from scpo_ray.local_cluster import end_node, start_node
from tests.chaos.faults import RAY, submitted
from tests.clusters import Cluster
from tests.conftest import TINY
from tests.stages.policy_runs import FIRST, SETTINGS, small_config

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.slow,
]
NUM_STEPS = 1000
NUM_POLICY_STEPS = 40


def test_notice_brings_a_checkpoint_and_is_no_failure(two_nodes, tmp_path):
    """One worker on each node; no checkpoint is due, and no failure is allowed."""
    train = {
        "num_workers": 2,
        "cpus_per_worker": 2,
        "max_steps": NUM_STEPS,
        "max_steps_overrides_epochs": True,
        "checkpoint_every_steps": 10 * NUM_STEPS,
        "max_failures": 0,
    }
    config = Config(run_dir=str(tmp_path / "run"), **TINY | {"train_global": TINY["train_global"] | train})
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    for job in ("prepare", "train_global"):
        with submitted(two_nodes, ["python", f"jobs/{job}.py", "--config", str(tmp_path / "config.yaml")]) as (
            run,
            output,
        ):
            if job == "train_global":
                saved_at = notice(two_nodes, run, tmp_path / "run")
            run.wait(300)
            assert run.returncode == 0, output.read_text()
    metrics = RunDirectory(config.run_dir).read_json("global_model/metrics.json")
    assert 0 < saved_at < NUM_STEPS
    assert metrics["num_steps"] == len(metrics["losses"]) == NUM_STEPS
    assert not list((tmp_path / "run/checkpoints").glob("*/step_*"))


def test_notice_brings_a_policys_checkpoint_and_is_no_failure(two_nodes, tmp_path):
    """One learner on each node, beside an engine and a scorer; no checkpoint is due, and no failure is allowed."""
    ppo = SETTINGS["ppo"] | {
        "communities": [FIRST],
        "num_steps": NUM_POLICY_STEPS,
        "prompts_per_step": 8,
        "checkpoint_every_steps": 10 * NUM_POLICY_STEPS,
        "max_failures": 0,
        "cpus_per_engine": 1.5,
        "cpus_per_learner": 1.0,
    }
    train = SETTINGS["train"] | {"communities": [FIRST], "num_seeds": 1, "epochs": 1}
    config = small_config(str(tmp_path / "run"), ppo=ppo, train=train)
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    for job in ("prepare", "train_global", "score", "select", "train", "sft", "ppo"):
        command = ["python", f"jobs/{job}.py", "--config", str(tmp_path / "config.yaml")]
        with submitted(two_nodes, command) as (run, output):
            if job == "ppo":
                await_(run, lambda: any(Path(config.run_dir).glob("logs/policies/*/tensorboard/*")))  # steps begin
                time.sleep(3)
                saved_at = take_away(two_nodes, run, tmp_path / "run", "policy_checkpoints")
            run.wait(300)
            assert run.returncode == 0, output.read_text()
    directory = RunDirectory(config.run_dir)
    (name,) = directory.names("policies")
    steps = directory.read_json(f"policies/{name}/metrics.json")["steps"]
    assert 0 < saved_at < NUM_POLICY_STEPS == len(steps)


def notice(two_nodes: Cluster, run: subprocess.Popen, run_dir: Path) -> int:
    """Tell Ray once the training is on its way; take the node when a checkpoint is there; the checkpoint's step."""
    await_(run, lambda: len(list(run_dir.glob("logs/stacks/*/rank_*.txt"))) == 2)  # both ranks train
    time.sleep(3)
    return take_away(two_nodes, run, run_dir, "checkpoints")


def take_away(two_nodes: Cluster, run: subprocess.Popen, run_dir: Path, folder: str) -> int:
    """The second node, with notice; the step of the checkpoint that the notice brought."""
    second = two_nodes.config.nodes[-1].name
    drain = ["drain-node", "--address", f"127.0.0.1:{two_nodes.config.port}", "--node-id", node_id(two_nodes)]
    drain += [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "spot",
        "--deadline-remaining-seconds",
        "60",
    ]
    subprocess.run([RAY, *drain], env=two_nodes.environment, check=True, capture_output=True, timeout=60)
    await_(run, lambda: any(run_dir.glob(f"{folder}/*/step_*")))
    step = max(int(path.name.removeprefix("step_")) for path in run_dir.glob(f"{folder}/*/step_*"))
    end_node(two_nodes.config, second, at_once=True)
    start_node(two_nodes.config, second, environment=two_nodes.environment)
    return step


def await_(run: subprocess.Popen, is_there) -> None:
    end = time.monotonic() + 240
    while not is_there():
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.2)


def node_id(two_nodes: Cluster) -> str:
    """Of the second node that lives now; the dashboard's summary may be that of the one before it."""
    headers = {"Authorization": f"Bearer {two_nodes.environment['RAY_AUTH_TOKEN']}"}
    answer = httpx.get(f"{two_nodes.address}/api/v0/nodes", headers=headers).raise_for_status()
    nodes = answer.json()["data"]["result"]["result"]
    (found,) = (node["node_id"] for node in nodes if node["state"] == "ALIVE" and not node["is_head_node"])
    return found
