"""`ray job submit`, for real: a head of its own on free ports, with token authentication."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.stages import train_global

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
START_S, STOP_S, JOB_S = 90, 5, 180


@dataclass(frozen=True)
class Head:
    """A head node and how to reach it."""

    address: str
    environment: dict[str, str]

    def submit(self, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        """Waits for the node's agent, which registers some time after the dashboard answers."""
        deadline = time.monotonic() + START_S
        while True:
            done = subprocess.run(
                [RAY, "job", "submit", "--address", self.address, "--working-dir", ".", "--", *entrypoint],
                cwd=ROOT,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=JOB_S,
                check=False,
            )
            if "No available agent" not in done.stderr + done.stdout or time.monotonic() > deadline:
                return done
            time.sleep(1)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Not pytest's folder: Ray's sockets lie below, and their paths may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    (folder / "home").mkdir()
    port, dashboard_port, client_port, agent_port, grpc_port, metrics_port, env_port = free_ports(7)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "HOME": str(folder / "home"),
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
    }
    options = {
        "port": port,
        "node-ip-address": "127.0.0.1",
        "dashboard-port": dashboard_port,
        "ray-client-server-port": client_port,
        "dashboard-agent-listen-port": agent_port,  # the session's own cluster may hold the default one
        "dashboard-agent-grpc-port": grpc_port,
        "metrics-export-port": metrics_port,
        "runtime-env-agent-port": env_port,
        "num-cpus": 2,
        "object-store-memory": 100_000_000,
        "temp-dir": folder / "r",
    }
    with open(folder / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--disable-usage-stats", *(f"--{k}={v}" for k, v in options.items())],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for_port(dashboard_port, process, folder / "log")
        yield Head(f"http://127.0.0.1:{dashboard_port}", environment)
    finally:
        stop(process, marker=str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


def wait_for_port(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    pytest.fail(f"no dashboard after {START_S} s: {log.read_text(encoding='utf-8')}")


def stop(process: subprocess.Popen, *, marker: str) -> None:
    """End the head and what it started: its group, and whatever carries the head's own folder in its command line.

    `ray stop` would end every cluster of this machine.
    """
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_S)
    for pid in started_by(marker):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def started_by(marker: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker.encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def test_prepare_and_score(head, tmp_path, tiny_reward_model):
    """The commands that the jobs' docstrings give; the second starts Ray Data actors on the cluster."""
    run_dir = str(tmp_path / "runs" / "run")
    atlas = {"num_prompts": 40, "majority_annotators": 8, "minority_annotators": 4, "interactions_per_annotator": 4}
    options = ["--run_dir", run_dir, *(f"--prepare.atlas.{key}={value}" for key, value in atlas.items())]
    done = head.submit("python", "jobs/prepare.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    directory = RunDirectory(run_dir)
    manifest = directory.require("prepared", job="prepare")
    assert manifest.statistics["num_pairs"] == directory.read_table("prepared/pairs.parquet").num_rows > 100

    start = {"model": str(tiny_reward_model), "epochs": 0}
    train_global.run(Config(run_dir=run_dir, prepare={"atlas": atlas}, train_global=start))
    model = ["--train_global.model", str(tiny_reward_model), "--train_global.epochs", "0"]
    done = head.submit("python", "jobs/score.py", *options, *model)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = directory.read_table("scores/scores.parquet")
    assert len(scores) == manifest.statistics["num_responses"]


def test_a_failure_reaches_the_submitter(head, tmp_path):
    done = head.submit("python", "jobs/prepare.py", "--run_dir", str(tmp_path / "run"), "--prepare.majority", "Nowhere")
    assert done.returncode != 0
    assert "scpo_ray: error: prepare.majority: no pairs from 'Nowhere'; the data has: Atlas" in done.stdout
    assert "Traceback" not in done.stdout
    assert not any((tmp_path / "run").rglob("*"))


def test_strangers_are_refused(head):
    """The token counts: whoever may submit may run anything."""
    for headers in ({}, {"Authorization": f"Bearer {secrets.token_hex(16)}"}):
        request = urllib.request.Request(f"{head.address}/api/jobs/", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(request, timeout=30)
        assert raised.value.code in (401, 403)
