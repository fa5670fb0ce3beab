"""Every experiment file can be run as its first line says, and states nothing but differences; every job has help."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scpo_ray.cli import load_config
from scpo_ray.config import Config

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "jobs/experiments").glob("*.yaml"))
JOBS = sorted(path for path in (ROOT / "jobs").glob("*.py") if path.name != "submit.py")
PINNED = {
    "published.yaml": {
        "select.strategy",
        "select.agreement_threshold",
        "select.weight_temperature",
        "train.normalization",
        "evaluate.test_threshold",
    }
}
"""Settings that stay as published, whatever becomes of the defaults."""


@pytest.fixture(autouse=True)
def real_data(monkeypatch):
    monkeypatch.setenv("SCPO_REAL_DATA", "/data")


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.fixture(params=EXPERIMENTS, ids=lambda path: path.name)
def experiment(request) -> Path:
    return request.param


def test_there_are_experiments_and_jobs():
    assert {path.name for path in EXPERIMENTS} >= {"demo.yaml", "prism.yaml", "published.yaml", "global_opinions.yaml"}
    stages = {path.stem for path in (ROOT / "scpo_ray/stages").glob("*.py")}
    assert {path.stem for path in JOBS} <= stages


def test_first_line_is_the_command_that_runs_it(experiment):
    first = experiment.read_text(encoding="utf-8").splitlines()[0]
    match = re.fullmatch(r"# (?:[A-Z_]+=\S+ )?python (jobs/\w+\.py) (--config \S+.*)", first)
    assert match, first
    assert (ROOT / match[1]).is_file()
    arguments = match[2].split()
    assert ROOT / arguments[1] == experiment
    config = load_config([f"--config={experiment}", *arguments[2:]])
    assert config.run_dir == f"runs/{experiment.stem}"


def test_variables_stand_in_the_command(experiment):
    """A file that reads the environment says so where it says how to run it."""
    text = experiment.read_text(encoding="utf-8")
    for variable in set(re.findall(r"\$\{(\w+)\}", text)):
        assert text.splitlines()[0].startswith(f"# {variable}=")


def test_states_only_differences(experiment):
    stated = flat(yaml.safe_load(experiment.read_text(encoding="utf-8")))
    config, defaults = (flat(c.model_dump()) for c in (load_config(["--config", str(experiment)]), Config()))
    assert stated.keys() <= config.keys()
    nothing = object()  # a search space has keys of its own
    assert {key for key in stated if config[key] == defaults.get(key, nothing)} == PINNED.get(experiment.name, set())


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_help(job):
    done = subprocess.run(
        [sys.executable, job, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {job.name} [--config FILE]")
    assert f"python jobs/{job.name} --config" in done.stdout
    assert "--select.agreement_threshold" in done.stdout


def test_a_bad_setting_fails_before_ray_is_imported():
    """In each job, the stage's imports come after the config's check."""
    probe = (
        "import runpy, sys; sys.modules['ray'] = None; sys.argv[1:] = ['--seed', 'x']; "
        "runpy.run_path(JOB, run_name='__main__')"
    )
    for job in JOBS:
        done = subprocess.run(
            [sys.executable, "-c", probe.replace("JOB", repr(str(job)))],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("scpo_ray: error: seed: x: ") and done.stderr.count("\n") == 1
