"""What PPO does on planted truth: two communities that want the opposite of each other, five worlds.

python -m benchmarks.ppo_worlds FOLDER

runs jobs/experiments/ppo_atlas.yaml in worlds of five seeds, from data to policies, and prints what docs/ppo.md quotes:

1. policies for each of the two communities: the gain in true utility for the own community and for the other one;
2. one policy for the majority and the first community by max-min: the true utility of the worse-off one;
3. the first world again without any price on moving (KL coefficient 0, twice the steps): reward and truth, step by step;
4. where the time goes, and how long one community takes from data to policy.

What is made already is found in FOLDER, so that an interrupted benchmark goes on.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import load_config
from scpo_ray.config import Config
from scpo_ray.ppo.step_metrics import PHASES
from scpo_ray.stages import ppo, prepare, recipes, score, select, sft, train, train_global

EXPERIMENT = Path(__file__).parents[1] / "jobs/experiments/ppo_atlas.yaml"
SEEDS = (5, 6, 7, 8, 9)
FIRST, SECOND, MAJORITY = "Brevia", "Calder Isles", "Atlas"


def config_of(folder: str, seed: int, **ppo_settings: object) -> Config:
    """The experiment in one world."""
    config = load_config(["--config", str(EXPERIMENT), "--run_dir", f"{folder}/seed-{seed}", "--seed", str(seed)])
    return config.model_copy(update={"ppo": config.ppo.model_copy(update=ppo_settings)})


def means(config: Config) -> dict[tuple[str, str], float]:
    """(policy, community) -> mean true utility on the test prompts, of the last measurement."""
    judged = RunDirectory(config.run_dir).read_table(f"{recipes.POLICY_EVALUATION}/judgements.parquet").to_pandas()
    return judged[judged.kind == "truth"].groupby(["policy", "community"]).value.mean().to_dict()


def steps_of(config: Config, folder: str) -> list[dict[str, float]]:
    """A policy's training, step by step."""
    return RunDirectory(config.run_dir).read_json(f"{folder}/metrics.json")["steps"]


def run_world(folder: str, seed: int) -> dict[str, object]:
    """Both parts in one world; gains of true utility, and seconds by stage."""
    opposed = config_of(folder, seed, communities=(FIRST, SECOND))
    seconds: dict[str, float] = {}
    for stage in (prepare, train_global, score, select, train, sft):
        _timed(seconds, stage.__name__.rsplit(".", 1)[1], lambda stage=stage: stage.run(opposed))
    _timed(seconds, "ppo", lambda: ppo.run(opposed))
    found = means(opposed)
    own = [found[name, name] - found["start", name] for name in (FIRST, SECOND)]
    other = [found[name, rival] - found["start", rival] for name, rival in ((FIRST, SECOND), (SECOND, FIRST))]
    folders = [f"policies/{RunDirectory(opposed.run_dir).names('policies')[index]}" for index in range(2)]
    steps = [row for each in folders for row in steps_of(opposed, each)[1:]]
    shared = config_of(folder, seed, communities=(MAJORITY, FIRST), compositions=("max_min",))
    _timed(seconds, "ppo max-min", lambda: ppo.run(shared))
    both = means(shared)
    before = {name: both["start", name] for name in (MAJORITY, FIRST)}
    after = {name: both["max_min", name] for name in (MAJORITY, FIRST)}
    worse = min(before, key=before.__getitem__)
    return {
        "seed": seed,
        "own": own,
        "other": other,
        "worse-off community at the start": worse,
        "worse-off before": before[worse],
        "worse-off after": after[worse],
        "lower of the two, before": min(before.values()),
        "lower of the two, after": min(after.values()),
        "shares": {phase: float(np.mean([row[f"{phase}_share"] for row in steps])) for phase in PHASES},
        "largest engine difference": max(row["engine_difference"] for row in steps),
        "seconds": seconds,
    }


def over_optimisation(folder: str) -> list[dict[str, float]]:
    """The first world's first community without a price on moving: KL, proxy and truth at every fifth step."""
    config = config_of(folder, SEEDS[0], communities=(FIRST,), kl_coefficient=0.0, num_steps=60)
    free = config.model_copy(update={"run_dir": f"{folder}/seed-{SEEDS[0]}-free"})
    for stage in (prepare, train_global, score, select, train, sft):
        stage.run(free)
    ppo.run(free)
    (name,) = RunDirectory(free.run_dir).names("policies")
    rows = steps_of(free, f"policies/{name}")
    return [
        {"step": step, "kl": row["kl"], "proxy": row[f"reward of {FIRST}"], "truth": row[f"utility of {FIRST}"]}
        for step, row in enumerate(rows)
        if step % 5 == 0 or step == len(rows) - 1
    ]


def interval(values: Sequence[float]) -> str:
    """Mean over worlds and its 95% t-interval."""
    mean, error = float(np.mean(values)), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def report(worlds: Sequence[dict], curve: Sequence[dict[str, float]]) -> str:
    """What docs/ppo.md quotes."""
    own = [np.mean(world["own"]) for world in worlds]
    other = [np.mean(world["other"]) for world in worlds]
    raised = [world["worse-off after"] - world["worse-off before"] for world in worlds]
    lower = [world["lower of the two, after"] - world["lower of the two, before"] for world in worlds]
    lines = [
        f"{len(worlds)} worlds; gains of true utility on unseen prompts, mean over worlds [95% t-interval]",
        f"policy for a community: own {interval(own)}, the other's {interval(other)}",
        f"max-min for {MAJORITY} and {FIRST}: the worse-off one at the start {interval(raised)}; the lower of the two "
        f"{interval(lower)}",
        "| seed | own | the other's | worse-off, max-min |",
        "|---|---|---|---|",
    ]
    for world in worlds:
        cells = (
            world["seed"],
            " ".join(f"{value:+.2f}" for value in world["own"]),
            " ".join(f"{value:+.2f}" for value in world["other"]),
            f"{world['worse-off community at the start']} {world['worse-off before']:+.2f} to {world['worse-off after']:+.2f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    shares = {phase: np.mean([world["shares"][phase] for world in worlds]) for phase in PHASES}
    lines.append("share of a step: " + ", ".join(f"{phase} {share:.1%}" for phase, share in shares.items()))
    lines.append(f"largest engine difference {max(world['largest engine difference'] for world in worlds):.1e} nats")
    totals = [sum(value for key, value in world["seconds"].items() if key != "ppo max-min") for world in worlds]
    lines.append(f"data to two policies: {np.mean(totals):.0f} s a world (slowest {max(totals):.0f} s)")
    lines += ["without a price on moving:", "| step | KL | proxy | truth |", "|---|---|---|---|"]
    lines += [f"| {row['step']} | {row['kl']:.1f} | {row['proxy']:+.2f} | {row['truth']:+.2f} |" for row in curve]
    return "\n".join(lines)


def _timed(seconds: dict[str, float], name: str, call: Callable[[], object]) -> None:
    start = time.monotonic()
    call()
    seconds[name] = round(time.monotonic() - start, 1)


def main(folder: str) -> None:
    """Everything, with the results of each world kept in FOLDER."""
    worlds = []
    for seed in SEEDS:
        path = Path(folder, f"world-{seed}.json")
        if not path.is_file():
            result = run_world(folder, seed)
            path.write_text(json.dumps(result, indent=1))
        worlds.append(json.loads(path.read_text()))
        print(json.dumps(worlds[-1]), flush=True)
    print(report(worlds, over_optimisation(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
