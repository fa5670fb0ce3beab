"""What is wrong with a command line of jobs/submit.py is said before a cluster is asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scpo_ray import submission
from scpo_ray.errors import ClusterError
from scpo_ray.local_cluster import free_port

SUBMIT = Path(__file__).parents[2] / "jobs/submit.py"


def test_another_folder_is_not_uploaded(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SUBMIT), "prepare", "--address", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert f"{tmp_path}: no jobs/prepare.py here, and this folder is what would be uploaded" in done.stderr


def test_an_address_wins_over_the_environments():
    """Else a job would run on another cluster than the one that was named."""
    nowhere, other = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    done = subprocess.run(
        [sys.executable, str(SUBMIT), "prepare", "--address", nowhere],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=SUBMIT.parents[1],
        env=os.environ | {"RAY_API_SERVER_ADDRESS": other},
    )
    assert done.returncode != 0
    assert f"{nowhere}: no job server to be reached" in done.stderr
    assert nowhere.rpartition(":")[2] in done.stderr.partition("(")[2] and other not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["prepare", "--run_dir", "/shared/run"],
            "--run_dir: not an option of submit.py; what the jobs are to be told goes after `--`",
        ),
        (["prepare", "--addr", "http://127.0.0.1:1"], "--addr: not an option of submit.py"),
        (
            ["prepare", "--entrypoint-memory-gib", "nan"],
            "--entrypoint-memory-gib: nan: not a number of GiB from 0 to 1,000,000",
        ),
        (
            ["prepare", "--entrypoint-memory-gib", "-1"],
            "--entrypoint-memory-gib: -1.0: not a number of GiB from 0 to 1,000,000",
        ),
        (["prepare", "--entrypoint-memory-gib", "1e30"], "--entrypoint-memory-gib: 1e+30: not a number of GiB"),
        (["prepair", "--", "--run_dir", "/shared/run"], "invalid choice: 'prepair'"),
    ],
)
def test_refused_in_one_line(arguments, said):
    done = subprocess.run(
        [sys.executable, str(SUBMIT), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_job_server_that_goes_is_one_line():
    """As Ray's client says it while it waits for output."""
    lost = r"raysubmit_1: the job server was lost \(WebSocket closed\); where it still runs, so does the job: ray job status"
    with pytest.raises(ClusterError, match=lost), submission._as_lost("raysubmit_1"):
        raise RuntimeError("WebSocket\nclosed")
