"""A node that is lost and comes back much later: a group that may be smaller does not wait for it."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import dump_yaml
from scpo_ray.config import Config
from scpo_ray.local_cluster import end_node, start_node
from tests.chaos.faults import submitted
from tests.chaos.test_preemption import await_
from tests.clusters import Cluster
from tests.conftest import TINY

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
TRAIN = {
    "num_workers": 2,
    "min_workers": 1,
    "cpus_per_worker": 2,
    "max_steps": 1600,
    "max_steps_overrides_epochs": True,
    "learning_rate": 1e-4,
    "dropout": False,
    "checkpoint_every_steps": 50,
    "max_failures": 1,
    "precision": "float32",
}

LOSS_TOLERANCES = {1e-3: 200, 0.05: 1600}
"""Nats per pair -> up to which step: measured 0.0003 and 0.031. What is rounded otherwise grows over 33 epochs."""
WEIGHT_TOLERANCE = 0.01
"""Measured 0.0034."""


def test_a_training_shrinks_and_grows_again(two_nodes, tmp_path):
    """One worker on each node. One failure is allowed: that the node comes back is none."""
    calm, disturbed = (
        Config(run_dir=str(tmp_path / name / "run"), **TINY | {"train_global": TINY["train_global"] | train})
        for name, train in (("calm", TRAIN | {"num_workers": 1}), ("disturbed", TRAIN))
    )
    submit(two_nodes, "prepare", calm)
    shutil.copytree(tmp_path / "calm", tmp_path / "disturbed")
    submit(two_nodes, "train_global", calm)
    submit(two_nodes, "train_global", disturbed, meanwhile=lose_a_node)

    losses = {name: metrics(config)["losses"] for name, config in (("calm", calm), ("disturbed", disturbed))}
    for tolerance, number in LOSS_TOLERANCES.items():
        assert losses["disturbed"][:number] == pytest.approx(losses["calm"][:number], abs=tolerance, rel=0)
    expected, found = (
        load_file(Path(config.run_dir, "global_model/model.safetensors")) for config in (calm, disturbed)
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=WEIGHT_TOLERANCE, rtol=0, msg=name)


def submit(two_nodes: Cluster, job: str, config: Config, *, meanwhile=None) -> None:
    file = Path(config.run_dir).parent / "config.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(dump_yaml(config))
    with submitted(two_nodes, ["python", f"jobs/{job}.py", "--config", str(file)]) as (run, output):
        if meanwhile is not None:
            meanwhile(two_nodes, run, Path(config.run_dir))
        run.wait(600)
        assert run.returncode == 0, output.read_text()


def lose_a_node(two_nodes: Cluster, run: subprocess.Popen, run_dir: Path) -> None:
    """After the first checkpoint; it joins again when one rank has written a checkpoint by itself."""
    second = two_nodes.config.nodes[-1].name
    await_(run, lambda: ranks(run_dir) == 2)
    end_node(two_nodes.config, second, at_once=True)
    await_(run, lambda: ranks(run_dir) == 1)
    start_node(two_nodes.config, second, environment=two_nodes.environment)
    await_(run, lambda: ranks(run_dir) == 2)


def ranks(run_dir: Path) -> int:
    """That wrote the newest checkpoint."""
    newest = max(run_dir.glob("checkpoints/*/step_*"), default=None)
    return 0 if newest is None else len(list(newest.glob("rank_*.pt")))


def metrics(config: Config) -> dict:
    return RunDirectory(config.run_dir).read_json("global_model/metrics.json")
