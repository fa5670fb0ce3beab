"""`ray job submit`, for real: to two nodes that ask for a token, with the run directory on S3."""

import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import boto3
import httpx
import pytest

from scpo_ray import ledger, local_cluster
from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.cli import load_config
from scpo_ray.config import Config
from scpo_ray.config.cluster import NodeShape
from scpo_ray.errors import ArtifactError, StorageError
from scpo_ray.stages import preflight, prepare
from tests.chaos.faults import Schedule, disturb, left_over
from tests.clusters import JOB_S, RAY, ROOT, Cluster, cluster, submit
from tests.conftest import FINISHED, TINY
from tests.refusals import is_at_once


@pytest.fixture(scope="module")
def two_nodes(s3) -> Iterator[Cluster]:
    with cluster(NodeShape(name="head", num_cpus=1), NodeShape(name="second", num_cpus=1)) as one:
        yield one


@pytest.fixture(scope="module")
def options() -> list[str]:
    """The demo, smaller, on the command line: what `finished_run` was made from."""
    return ["--config", "jobs/experiments/demo.yaml", *_options("", FINISHED)]


def _options(prefix: str, settings: dict) -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _options(f"{prefix}{name}.", value)
        else:
            yield from (f"--{prefix}{name}", ",".join(value) if isinstance(value, list) else str(value))


def hashes(address: str, config: Config) -> dict[str, str]:
    """Artifact -> content hash."""
    run = RunDirectory(address)
    names = ["prepared", "global_model", "scores", *(f"decisions/{arm.name}" for arm in config.select.arms)]
    names += [f"reward_models/{name}" for name in run.names("reward_models")] + ["evaluation"]
    return {name: run.require(name, job="pipeline").content_hash for name in names}


def test_the_pipeline_submitted_to_two_nodes_makes_what_it_makes_here(two_nodes, s3, options, tmp_path, finished_run):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert load_config([*options, "--run_dir", finished_run.run_dir]) == finished_run
    shared = str(tmp_path / "checkpoints")
    options = [
        *options,
        "--train.checkpoint_dir",
        shared,
        "--train_global.checkpoint_dir",
        shared,
        "--run_dir",
        f"{s3}/demo",
    ]
    done = submit(two_nodes, "python", "jobs/pipeline.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and "Plan: 2 nodes, 2 CPU" in done.stdout
    found = hashes(f"{s3}/demo", finished_run)
    assert found == hashes(finished_run.run_dir, finished_run)
    assert len(found) > 6

    again = submit(two_nodes, "python", "jobs/pipeline.py", *options)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("nothing: it is made") == 6
    assert hashes(f"{s3}/demo", finished_run) == found


@pytest.mark.slow  # tests/training/test_resume.py kills a worker, tests/stages/test_pipeline.py a driver, tests/chaos everything
def test_a_pipeline_whose_worker_and_driver_are_killed_makes_the_same(two_nodes, options, tmp_path, finished_run):
    """One short fault of each kind; tests/chaos has all kinds, on a schedule."""
    run_dir = tmp_path / "run"
    command = ["python", "jobs/pipeline.py", *options, "--run_dir", str(run_dir)]
    schedule = Schedule(3, num_faults=2, mean_gap_s=3.0, kinds=("worker", "driver"))
    outcome = disturb(two_nodes, command, run_dir, schedule)
    assert sorted(fault.kind for fault in outcome.faults) == ["driver", "worker"]
    assert outcome.submissions == 2 and outcome.lost == []
    assert hashes(str(run_dir), finished_run) == hashes(finished_run.run_dir, finished_run)
    assert left_over(two_nodes, command, run_dir) == []


def test_jobs_one_after_another_with_what_they_are_written_down(two_nodes, s3, options):
    command = [sys.executable, "jobs/submit.py", "prepare", "select", "--", *options, "--run_dir", f"{s3}/chained"]
    done = subprocess.run(
        command, cwd=ROOT, env=two_nodes.environment, capture_output=True, text=True, timeout=JOB_S, check=False
    )
    assert done.returncode == 1 and "prepared: made in" in done.stdout
    assert "jobs/train_global.py first" in done.stdout  # the second job's own refusal
    (line,) = (line for line in done.stderr.splitlines() if "INFO" not in line)  # Ray's own, on the upload and the end
    assert line.startswith("scpo_ray: error: jobs/select.py (") and "exit code 1" in line
    headers = {"Authorization": f"Bearer {two_nodes.environment['RAY_AUTH_TOKEN']}"}
    listed = httpx.get(f"{two_nodes.address}/api/jobs/", headers=headers).raise_for_status().json()
    jobs = {job["metadata"]["job"]: job for job in listed if "job" in (job["metadata"] or {})}
    assert {name: job["status"] for name, job in jobs.items()} == {"prepare": "SUCCEEDED", "select": "FAILED"}
    assert jobs["prepare"]["metadata"] == {"project": "scpo_ray", "job": "prepare", "run_dir": f"{s3}/chained"}
    for job in jobs.values():
        assert two_nodes.environment["RAY_AUTH_TOKEN"] not in str(job)


def test_a_failure_reaches_the_submitter(two_nodes, tmp_path):
    done = submit(
        two_nodes, "python", "jobs/prepare.py", "--run_dir", str(tmp_path / "run"), "--prepare.majority", "Nowhere"
    )
    assert done.returncode != 0
    assert "scpo_ray: error: prepare.majority: no pairs from 'Nowhere'; the data has: Atlas" in done.stdout
    assert "Traceback" not in done.stdout
    assert not any((tmp_path / "run").rglob("*"))


def test_what_a_job_on_the_second_node_wrote_is_shown_when_it_fails(two_nodes, tmp_path):
    """Ray looks for it on the head."""
    busy = [RAY, "job", "submit", "--no-wait", "--entrypoint-num-cpus", "1", "--submission-id", "busy", "--"]
    subprocess.run([*busy, "sleep", "300"], env=two_nodes.environment, check=True, timeout=60, capture_output=True)
    command = [
        sys.executable,
        "jobs/submit.py",
        "prepare",
        "--",
        "--run_dir",
        str(tmp_path),
        "--prepare.majority",
        "Nowhere",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=two_nodes.environment, capture_output=True, text=True, timeout=JOB_S, check=False
    )
    subprocess.run([RAY, "job", "stop", "busy"], env=two_nodes.environment, check=True, timeout=60, capture_output=True)
    message = "scpo_ray: error: prepare.majority: no pairs from 'Nowhere'"
    assert message not in done.stdout, "it was on the head"
    assert done.returncode == 1 and message in done.stderr


def test_results_in_the_upload_are_refused(two_nodes):
    """Which `runs/default` would be: gone with the cluster, and other to every changed upload."""
    done = submit(two_nodes, "python", "jobs/prepare.py")
    assert done.returncode != 0
    assert "runs/default: inside the folder that was uploaded for this job" in done.stdout


def test_memory_that_no_node_has_is_said_while_the_job_waits(two_nodes, tmp_path):
    command = [sys.executable, "jobs/submit.py", "prepare", "--entrypoint-memory-gib", "100000"]
    with subprocess.Popen(
        [*command, "--", "--run_dir", str(tmp_path / "run")],
        cwd=ROOT,
        env=two_nodes.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert waiting.stderr is not None
        said = next(line for line in waiting.stderr if "waits to start" in line)  # after Ray's own, on the upload
        waiting.kill()
    name = said.partition(":")[0]
    subprocess.run([RAY, "job", "stop", "--no-wait", name], env=two_nodes.environment, check=True, timeout=60)
    assert "waiting for resources" in said


def test_what_the_cluster_can_never_place_is_refused_there(two_nodes, tmp_path):
    done = submit(
        two_nodes, "python", "jobs/train.py", "--run_dir", str(tmp_path / "run"), "--train.cpus_per_worker", "2"
    )
    assert done.returncode != 0
    assert "train: 1 training worker: 2 CPU needed on one node, and no node has it (the cluster at " in done.stdout


def test_a_bucket_that_is_not_there(s3):
    config = Config(run_dir="s3://nowhere-to-be-found/run")
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://nowhere-to-be-found/run: .*(?i:bucket)"):
        preflight.check_storage(config)
    cached = config.with_settings({"score.cache_dir": "s3://nowhere-to-be-found/kept"})
    with pytest.raises(StorageError, match=r"score.cache_dir: s3://nowhere-to-be-found/kept: .*(?i:bucket)"):
        preflight.check_scratch(cached, "score")
    assert time.monotonic() - start < 2
    preflight.check_storage(Config(run_dir=f"{s3}/run"))
    assert not boto3.client("s3").list_objects_v2(Bucket="runs", Prefix="run/").get("Contents")


def test_another_configs_artifacts_on_s3_are_refused(s3):
    config = Config(run_dir=f"{s3}/of_another_seed", **TINY)
    prepare.run(config)
    other = config.model_copy(update={"seed": 5})
    with pytest.raises(
        ArtifactError, match=r"s3://runs/of_another_seed/prepared: made with seed = 0, this config has 5"
    ):
        preflight.check_artifacts(other, RunDirectory(other.run_dir), "pipeline")


def test_verify_reads_the_store_and_no_copy_of_it(s3):
    run = RunDirectory(f"{s3}/to_verify")
    with Recipe("prepared", "prepare", {}, {}, 0).making(run) as draft:
        draft.write_json("rows.json", [1, 2, 3])
    assert ledger.verify(run.address) == (1, [])
    run.fetch("prepared")  # as jobs do
    store, key = boto3.client("s3"), {"Bucket": "runs", "Key": "to_verify/prepared/rows.json"}
    content = store.get_object(**key)["Body"].read()
    store.put_object(**key, Body=content.replace(b"2", b"7"))
    number, found = ledger.verify(run.address)
    assert number == 1 and found == [f"{run.address}/prepared: another content than its manifest says"]


def test_strangers_are_refused(two_nodes):
    """The token counts: whoever may submit may run anything."""
    for headers in ({}, {"Authorization": f"Bearer {secrets.token_hex(16)}"}):
        request = urllib.request.Request(f"{two_nodes.address}/api/jobs/", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(request, timeout=30)
        assert raised.value.code in (401, 403)


@pytest.mark.parametrize("token", [None, "0" * 32])
@pytest.mark.parametrize(
    "command",
    [
        (RAY, "job", "submit", "--working-dir", "jobs", "--", "touch"),
        (sys.executable, "jobs/submit.py", "prepare", "--", "--run_dir"),
    ],
    ids=["ray job submit", "jobs/submit.py"],
)
def test_a_submission_without_the_token_is_refused(two_nodes, token, command, tmp_path):
    environment = {name: value for name, value in two_nodes.environment.items() if not name.startswith("RAY_AUTH")}
    environment["HOME"] = str(tmp_path)  # no token in ~/.ray either
    if token is not None:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    else:
        environment["RAY_AUTH_MODE"] = "disabled"
    done = subprocess.run(
        [*command, str(tmp_path / "ran")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert not (tmp_path / "ran").exists()
    printed = done.stdout + done.stderr
    assert "401" in printed or "403" in printed or "uthenti" in printed
    if "jobs/submit.py" in command:
        assert printed.count("\n") == 1 and "no job server to be reached (Authentication" in printed


def test_health_checks_ask_for_no_token(two_nodes):
    """clusters/kuberay probes these paths."""
    with urllib.request.urlopen(f"{two_nodes.address}/api/gcs_healthz", timeout=30) as answer:
        assert answer.status == 200 and b"success" in answer.read()
    for port in local_cluster.agent_ports(two_nodes.config).values():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/local_raylet_healthz", timeout=30) as answer:
            assert answer.status == 200 and b"success" in answer.read()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_store_that_is_not_there_is_refused_in_five_seconds_of_the_whole_command(s3, scheme):
    nowhere = f"http://127.0.0.1:{local_cluster.free_port()}"
    environment = os.environ | {"AWS_ENDPOINT_URL": nowhere, "CLOUD_STORAGE_EMULATOR_ENDPOINT": nowhere}
    variable = "AWS_ENDPOINT_URL" if scheme == "s3" else "CLOUD_STORAGE_EMULATOR_ENDPOINT"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "jobs/pipeline.py", "--run_dir", f"{scheme}://runs/run", "--dry-run"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert is_at_once(time.monotonic() - start)
    assert done.returncode == 1
    said = f"{scheme}://runs/run: {nowhere.removeprefix('http://')}: Connection refused; check the network"
    assert done.stderr == f"scpo_ray: error: {said}, or name another endpoint ({variable})\n"
