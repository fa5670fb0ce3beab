"""The jobs that are disturbed: small, with all that they need made before, and what their result is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import dump_yaml
from scpo_ray.config import Config
from tests.conftest import TINY
from tests.stages.policy_runs import FIRST, SETTINGS, small_config

Result = dict[str, object]


@dataclass(frozen=True)
class Job:
    """One script with the config that it runs with."""

    name: str
    config: Config
    result: Callable[[Config], Result]
    """Of a finished run: what must be the same, however often it was disturbed."""

    calm_until: str = ""
    """What shows that the job is in the middle of its work."""

    mean_gap_s: float = 7.0
    """Between faults: all of them are to strike before the job is done."""

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)

    def command(self) -> list[str]:
        file = self.run_dir.parent / f"{self.name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dump_yaml(self.config))
        return ["python", f"jobs/{self.name}.py", "--config", str(file)]


def pipeline_job(run_dir: Path, *, on_both_nodes: bool = False) -> Job:
    """From data to report, with two seeds: every stage but those of policies."""
    train = TINY["train"] | {"num_seeds": 2, "epochs": 3, "checkpoint_every_steps": 5}
    train |= {"num_worker_groups": 2, "cpus_per_worker": 2} if on_both_nodes else {}
    settings = TINY | {"select": {"controls": ()}, "train": train}
    return Job("pipeline", Config(run_dir=str(run_dir), **settings), _artifacts)


def tune_job(run_dir: Path, *, on_both_nodes: bool = False) -> Job:
    """Six trials, two at a time; `run_dir` has scores."""
    space = {
        "select.agreement_threshold": {"choice": [0.6, 0.8, 0.9]},
        "train.learning_rate": {"choice": [1e-12, 1e-3]},
    }
    settings = TINY | {
        "select": {"strategy": "filter_weight"},
        "train": TINY["train"]
        | {"epochs": 2, "evaluations_per_epoch": 2}
        | ({"num_worker_groups": 2, "cpus_per_worker": 2} if on_both_nodes else {}),
        "tune": {"space": space, "search": "grid", "num_trials": 6, "max_concurrent": 2},
    }
    return Job("tune", Config(run_dir=str(run_dir), **settings), _trials, "tune/search/trials/*.json", mean_gap_s=2.0)


def ppo_job(run_dir: Path, *, on_both_nodes: bool = False) -> Job:
    """One policy; `run_dir` has reward models of two seeds and a start policy."""
    wide = {"cpus_per_engine": 1.5, "cpus_per_learner": 1.0} if on_both_nodes else {}
    return Job(
        "ppo",
        small_config(str(run_dir), ppo=SETTINGS["ppo"] | {"communities": (FIRST,)} | wide),
        _steps,
        "policy_checkpoints/*/step_*",
        mean_gap_s=1.0,
    )


def _artifacts(config: Config) -> Result:
    """Content hashes: weights, scores, decisions, evaluation."""
    run = RunDirectory(config.run_dir)
    names = ["prepared", "global_model", "scores", *(f"decisions/{arm.name}" for arm in config.select.arms)]
    for folder in ("reward_models", *(f"replicates/{seed}/reward_models" for seed in run.folders("replicates"))):
        names += [f"{folder}/{name}" for name in run.folders(folder)]
    return {name: run.require(name, job="pipeline").content_hash for name in [*names, "evaluation"]}


def _trials(config: Config) -> Result:
    """Every trial's point, outcome and measures, to the last bit."""
    rows = RunDirectory(config.run_dir).read_table("tune/search/result/trials.parquet").to_pylist()
    return {row["digest"]: {key: repr(value) for key, value in row.items() if key not in _NOT_RESULTS} for row in rows}


_NOT_RESULTS = ("wall_time_s", "trial")


def _steps(config: Config) -> Result:
    """What was measured at every step of the policy."""
    run = RunDirectory(config.run_dir)
    (name,) = (name for name in run.folders("policies") if name.startswith(FIRST.lower()))
    rows = run.read_json(f"policies/{name}/metrics.json")["steps"]
    return {f"step {step}": {key: row[key] for key in MEASURES} for step, row in enumerate(rows)}


MEASURES = ("reward", "kl", "length", f"utility of {FIRST}", "policy_loss", "critic_loss", "entropy")
