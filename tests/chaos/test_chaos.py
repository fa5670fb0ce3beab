"""Jobs that are disturbed end with what they end with in peace; nothing is lost, and nothing stays behind.

Processes, actors, the job's own process and the second of two nodes are killed on a seeded schedule; what cannot survive that is
submitted again, as its user would.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scpo_ray.artifacts import RunDirectory
from scpo_ray.stages import pipeline, prepare, score, train_global, tune
from tests.chaos.__main__ import described
from tests.chaos.faults import KINDS, Schedule, disturb, left_over
from tests.chaos.jobs import Job, pipeline_job, ppo_job, tune_job
from tests.clusters import Cluster

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def weights(run_dir: str, folder: str) -> dict[str, torch.Tensor]:
    (file,) = Path(run_dir).glob(f"{folder}/model.safetensors")
    return load_file(file)


def survive(two_nodes: Cluster, job: Job, *, seed: int) -> None:
    """Four faults, one of each kind, in an order of the seed's."""
    schedule = Schedule(seed, calm_until=job.calm_until, mean_gap_s=job.mean_gap_s)
    outcome = disturb(two_nodes, job.command(), job.run_dir, schedule)
    print(described(job, seed, outcome, []))  # pytest -rP shows it
    assert outcome.lost == [], "what was finished stays as it was"
    assert left_over(two_nodes, job.command(), job.run_dir) == []
    assert sorted(fault.kind for fault in outcome.faults) == sorted(KINDS), (
        "the job was over before it could be disturbed"
    )
    assert outcome.submissions >= 2


def test_a_pipeline_bit_for_bit(two_nodes, ray_cluster, tmp_path):
    calm, disturbed = pipeline_job(tmp_path / "calm/run"), pipeline_job(tmp_path / "disturbed/run", on_both_nodes=True)
    pipeline.run(calm.config)
    survive(two_nodes, disturbed, seed=1)
    assert disturbed.result(disturbed.config) == calm.result(calm.config)


def test_a_search_bit_for_bit(two_nodes, ray_cluster, tmp_path):
    """Every trial; the finished ones are not run again."""
    calm, disturbed = tune_job(tmp_path / "calm/run"), tune_job(tmp_path / "disturbed/run", on_both_nodes=True)
    for stage in (prepare, train_global, score):
        stage.run(calm.config)
    shutil.copytree(tmp_path / "calm", tmp_path / "disturbed")
    tune.run(calm.config)
    survive(two_nodes, disturbed, seed=1)
    assert disturbed.result(disturbed.config) == calm.result(calm.config)


def test_a_policy_step_by_step(two_nodes, policy_run, tmp_path):
    """Engines batch what they write by when it arrives, which may round differently: measures equal to four digits, weights to
    2% of the way that training took them."""
    for name in ("run", "score_cache"):
        left_out = shutil.ignore_patterns("pol*", "composed*", "logs")
        shutil.copytree(Path(policy_run.run_dir).parent / name, tmp_path / name, ignore=left_out)
    disturbed = ppo_job(tmp_path / "run", on_both_nodes=True)
    survive(two_nodes, disturbed, seed=1)
    found, expected = disturbed.result(disturbed.config), disturbed.result(policy_run)
    assert found.keys() == expected.keys()
    for step, measures in expected.items():
        assert found[step] == pytest.approx(measures, abs=1e-5, rel=1e-4), step
    start, calm, again = (
        weights(config.run_dir, folder)
        for config, folder in (
            (policy_run, "start_policy"),
            (policy_run, "policies/brevia*"),
            (disturbed.config, "policies/brevia*"),
        )
    )
    moved = max(float((calm[name] - start[name]).abs().max()) for name in calm)
    for name, tensor in calm.items():
        torch.testing.assert_close(again[name], tensor, atol=0.02 * moved, rtol=0.0, msg=name)
    assert RunDirectory(disturbed.config.run_dir).names("policy_checkpoints") == []
