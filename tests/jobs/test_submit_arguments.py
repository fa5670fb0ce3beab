"""What is wrong with a command line of jobs/submit.py is said before a cluster is asked."""

import subprocess
import sys
from pathlib import Path

import pytest

SUBMIT = Path(__file__).parents[2] / "jobs/submit.py"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["prepare", "--run_dir", "/shared/run"],
            "--run_dir: not an option of submit.py; what the jobs are to be told goes after `--`",
        ),
        (["prepare", "--addr", "http://127.0.0.1:1"], "--addr: not an option of submit.py"),
        (["prepair", "--", "--run_dir", "/shared/run"], "invalid choice: 'prepair'"),
    ],
)
def test_refused_in_one_line(arguments, said):
    done = subprocess.run(
        [sys.executable, str(SUBMIT), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
