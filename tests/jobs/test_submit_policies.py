"""Policies on two nodes with everything on S3: what they start from, what they leave."""

from pathlib import Path

import pyarrow.fs as pafs
import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import dump_yaml
from scpo_ray.config.cluster import NodeShape
from tests.chaos.jobs import ppo_job
from tests.clusters import cluster, submit
from tests.stages.policy_runs import SETTINGS, small_config

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def test_policies_on_s3_are_those_made_here(s3, policy_run, tmp_path):
    here = Path(policy_run.run_dir)
    there, (filesystem, _) = f"{s3}/policies/run", pafs.FileSystem.from_uri(s3)
    for name in ("prepared", "global_model", "scores", "decisions", "reward_models", "replicates"):
        pafs.copy_files(str(here / name), f"runs/policies/run/{name}", destination_filesystem=filesystem)
    shared = {"checkpoint_dir": str(tmp_path / "checkpoints")}
    config = small_config(
        there,
        train_global=SETTINGS["train_global"] | shared,
        train=SETTINGS["train"] | shared,
        sft=SETTINGS["sft"] | shared,
        ppo=SETTINGS["ppo"] | shared | {"communities": ("Brevia",)},
    )
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    with cluster(NodeShape(name="head", num_cpus=2), NodeShape(name="second", num_cpus=2)) as two_nodes:
        for job in ("sft", "ppo"):
            done = submit(two_nodes, "python", f"jobs/{job}.py", "--config", str(file))
            assert done.returncode == 0, done.stdout + done.stderr
    run = RunDirectory(there)
    starts = [one.require("start_policy", job="sft").content_hash for one in (run, RunDirectory(policy_run.run_dir))]
    assert starts[0] == starts[1]
    steps = ppo_job(tmp_path / "unused").result
    found, expected = steps(config), steps(policy_run)
    assert found.keys() == expected.keys()
    for step, measures in expected.items():
        assert found[step] == pytest.approx(measures, abs=1e-5, rel=1e-4), step
    assert not list((tmp_path / "checkpoints").rglob("step_*"))
