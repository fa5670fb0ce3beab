"""What the method does on planted truth: five atlas worlds, each without and with extreme outliers.

python -m benchmarks.planted_worlds [LEARNING_RATE ...]

prints, for each learning rate of the communities' models, what docs/atlas.md quotes. tests/stages/test_atlas_claims.py
bounds the figures of the first.
"""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.core.accuracy import pair_correctness
from scpo_ray.runtime import connect
from scpo_ray.stages import evaluate, prepare, score, select, train, train_global
from scpo_ray.training.workers import run_tasks

SEEDS = (0, 1, 2, 3, 4)
OUTLIER_RATE = 0.08
STRATEGIES = ("filter_weight", "filter")
LEARNING_RATE = 5e-4


def world_config(folder: str, seed: int, outlier_rate: float, learning_rate: float) -> Config:
    """The test-sized setting: the same budgets in every world.

    Outliers are planted in minorities only, so the global model of a seed is trained once.
    """
    return Config(
        run_dir=f"{folder}/seed-{seed}-outliers-{outlier_rate}-rate-{learning_rate}",
        seed=seed,
        prepare={
            "atlas": {
                "majority_annotators": 60,
                "minority_annotators": 20,
                "num_minorities": 2,
                "outlier_rate": outlier_rate,
                "noise_rate": 0.05,
            }
        },
        format={"max_tokens": 96},
        train_global={"model": f"{_ruler_config(folder, seed).run_dir}/global_model", "epochs": 0},
        select={"strategy": "filter_weight", "controls": ["filter"]},
        train={"epochs": 2, "learning_rate": learning_rate},
        evaluate={"num_resamples": 200},
    )


def _ruler_config(folder: str, seed: int) -> Config:
    return Config(
        run_dir=f"{folder}/seed-{seed}-ruler",
        seed=seed,
        prepare={
            "atlas": {
                "majority_annotators": 60,
                "minority_annotators": 20,
                "num_minorities": 2,
                "outlier_rate": 0.0,
                "noise_rate": 0.05,
            }
        },
        format={"max_tokens": 96},
        train_global={"epochs": 5, "learning_rate": 1e-3},
    )


@dataclass(frozen=True)
class World:
    """What was decided and learned in one world."""

    decisions: dict[str, dict[str, float]]
    """Planted kind -> share, kept share, mean weight of the kept; training pairs of the minorities."""
    overall: dict[tuple[str, str], float]
    """(model, community) -> accuracy on all test pairs."""
    truth: dict[tuple[str, str], float]
    """(strategy, community) -> accuracy on test pairs whose label is the community's true preference."""


Worlds = Mapping[tuple[int, float], World]
"""(seed, outlier rate) -> world."""


def make_worlds(folder: str, *, learning_rate: float = LEARNING_RATE) -> Worlds:
    """All worlds at one training budget; two Ray Train jobs train all of their models."""
    _train_rulers(folder)
    configs = {
        (seed, rate): world_config(folder, seed, rate, learning_rate) for seed in SEEDS for rate in (0.0, OUTLIER_RATE)
    }
    tasks = []
    for config in configs.values():
        prepare.run(config)
        train_global.run(config)
        score.run(config)
        select.run(config)
        planned, outcome = train.plan(config, RunDirectory(config.run_dir))
        assert outcome.failed == {}
        tasks += [
            replace(task, card=task.card | {"name": f"{task.name} {config.run_dir}"}) for task in planned.values()
        ]
    assert run_tasks(tasks, tasks[0].config).failed == {}
    return {key: _measure(config) for key, config in configs.items()}


def _train_rulers(folder: str) -> None:
    tasks = []
    for seed in SEEDS:
        config = _ruler_config(folder, seed)
        prepare.run(config)
        directory = RunDirectory(config.run_dir)
        if directory.find("global_model") is None:
            task = train_global.plan(config, directory)
            tasks.append(replace(task, card=task.card | {"name": f"global {config.run_dir}"}))
    if tasks:
        assert run_tasks(tasks, tasks[0].config).failed == {}


def _measure(config: Config) -> World:
    run = RunDirectory(config.run_dir)
    evaluate.run(config)
    truth = {row["pair_id"]: row for row in run.read_table("prepared/pair_truth.parquet").to_pylist()}
    decisions = run.read_table(
        "decisions/filter_weight/decisions.parquet",
        filters=(pc.field("split") == "train") & (pc.field("community") != "Atlas"),
    ).to_pylist()
    by_kind: dict[str, list[dict]] = {}
    for row in decisions:
        by_kind.setdefault(truth[row["pair_id"]]["kind"], []).append(row)
    rewards = run.read_table("evaluation/rewards.parquet").to_pandas()
    rewards["utility_gap"] = [truth[pair_id]["utility_gap"] for pair_id in rewards.pair_id]
    overall, true_accuracy = {}, {}
    is_own = (rewards.model == "global") | (rewards.model.str.split("/").str[1] == rewards.community)
    for (model, community), rows in rewards[is_own & (rewards.community != "Atlas")].groupby(["model", "community"]):
        correct = pair_correctness(
            chosen_rewards=rows.reward_chosen.to_numpy(), rejected_rewards=rows.reward_rejected.to_numpy()
        )
        overall[model, community] = float(correct.mean())
        true_accuracy[model.split("/")[0], community] = float(correct[(rows.utility_gap > 0).to_numpy()].mean())
    return World(
        {
            kind: {
                "kept": float(np.mean([row["kept"] for row in rows])),
                "weight": float(np.mean([row["weight"] for row in rows if row["kept"]])),
                "share": len(rows) / len(decisions),
            }
            for kind, rows in by_kind.items()
        },
        overall,
        true_accuracy,
    )


def gains_over_global(worlds: Worlds) -> dict[tuple[int, str], float]:
    """SCPO's overall accuracy minus the global model's, by (seed, community); worlds with outliers."""
    found = {}
    for seed in SEEDS:
        overall = worlds[seed, OUTLIER_RATE].overall
        for model, community in overall:
            if model.startswith("filter_weight/"):
                found[seed, community] = overall[model, community] - overall["global", community]
    return found


def harm(worlds: Worlds, strategy: str) -> list[float]:
    """Per world: true accuracy lost by training with planted outliers, mean over its communities."""
    losses = []
    for seed in SEEDS:
        clean, dirty = worlds[seed, 0.0].truth, worlds[seed, OUTLIER_RATE].truth
        losses.append(float(np.mean([clean[key] - dirty[key] for key in clean if key[0] == strategy])))
    return losses


def mean_truth(worlds: Worlds, strategy: str, rate: float) -> float:
    """True accuracy of a strategy's models (or of `global`), mean over worlds and communities."""
    return float(np.mean([v for seed in SEEDS for (s, _), v in worlds[seed, rate].truth.items() if s == strategy]))


def show(worlds: Worlds) -> None:
    """The figures as text."""
    for kind in ("agreement", "culture", "noise", "outlier"):
        rows = [worlds[seed, OUTLIER_RATE].decisions[kind] for seed in SEEDS]
        shares = {key: round(float(np.mean([row[key] for row in rows])), 3) for key in ("share", "kept", "weight")}
        print(f"{kind:<14}", shares)
    gains = list(gains_over_global(worlds).values())
    print(f"SCPO's gain over the global model: {100 * min(gains):+.1f} to {100 * max(gains):+.1f} points")
    for strategy in ("global", *STRATEGIES):
        clean, dirty = (100 * mean_truth(worlds, strategy, rate) for rate in (0.0, OUTLIER_RATE))
        by_world = "" if strategy == "global" else f", by world {np.round(100 * np.array(harm(worlds, strategy)), 1)}"
        print(f"{strategy:<14} true accuracy {clean:.1f} -> {dirty:.1f}, harm {clean - dirty:+.1f}{by_world}")


def main() -> None:
    """Print the figures of every learning rate on the command line."""
    connect()
    rates = [float(text) for text in sys.argv[1:]] or [LEARNING_RATE]
    with tempfile.TemporaryDirectory() as folder:
        for rate in rates:
            print(f"\nlearning rate {rate:g}")
            show(make_worlds(folder, learning_rate=rate))


if __name__ == "__main__":
    main()
