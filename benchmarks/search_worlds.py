"""Searches on planted truth: how soon TPE and chance find the best settings, and what `auto` gives away.

python -m benchmarks.search_worlds FOLDER [fresh]

prints what docs/tuning.md quotes. Five atlas worlds with planted noise and outliers; in each, every point of a grid of τ and
β is trained once, by `jobs/tune.py`'s own search. The best region is known from all worlds together: the BEST_SHARE of the
points with the highest mean accuracy over them, so that it is a property of what is planted and not of one world's
validation pairs. Searches of NUM_TRIALS trials, ten seeds in each world, then read what their trials come to from the grid.
Grid, shares and numbers were fixed before the first point was trained. FOLDER keeps the runs, and continues them.

`fresh`: five other worlds and a coarse grid, for the rule behind `auto`, which was revised after the first five had been seen.
"""

import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd

from benchmarks.planted_worlds import ATLAS, FORMAT, LEARNING_RATE, RULER
from scpo_ray.config import Config, SearchRange, TuneConfig
from scpo_ray.stages import tune
from scpo_ray.stages.search import AUTO, DEFAULT
from scpo_ray.stages.trials import tpe
from scpo_ray.tuning.records import TrialRecord
from scpo_ray.tuning.space import grid

WORLDS, FRESH_WORLDS = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
SEARCH_SEEDS = range(10)
NUM_TRIALS = 16
BEST_SHARE = 0.05
TAU, BETA = "select.agreement_threshold", "select.weight_temperature"
SPACE = {
    TAU: SearchRange(uniform=(0.5, 0.95), step=0.05),
    BETA: SearchRange(choice=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)),
}
COARSE_SPACE = {TAU: SearchRange(choice=(0.7, 0.85, 0.95)), BETA: SearchRange(choice=(1.0, 2.0, 4.0, 8.0))}
OBJECTIVE = "overall"


def world_config(folder: str, seed: int, space: dict[str, SearchRange]) -> Config:
    """The world and the budgets of `benchmarks.planted_worlds`; more of its pairs judge, since nothing is tested."""
    return Config(
        run_dir=f"{folder}/seed-{seed}",
        seed=seed,
        prepare={"atlas": ATLAS, "validation_fraction": 0.3, "test_fraction": 0.1},
        format=FORMAT,
        train_global=RULER,
        train={
            "epochs": 2,
            "learning_rate": LEARNING_RATE,
            "evaluations_per_epoch": 1,
            "num_worker_groups": 2,
            "threads_per_worker": 1,
        },
        tune={"space": space, "search": "grid", "num_trials": len(grid(space)), "objectives": [OBJECTIVE]},
    )


def landscape(
    folder: str, worlds: Sequence[int] = WORLDS, space: dict[str, SearchRange] = SPACE
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracies, a column per world: of every (τ, β), and of the baselines."""
    points, baselines = {}, {}
    for seed in worlds:
        config = world_config(folder, seed, space)
        tune.run(config)
        (outcome,) = tune.outcomes(config).values()
        print(f"world {seed}: auto's τ, β: {outcome.baselines[AUTO].constants}", flush=True)
        points[seed] = {(record.point[TAU], record.point[BETA]): _value(record) for record in outcome.records}
        baselines[seed] = {name: _value(record) for name, record in outcome.baselines.items()}
    return pd.DataFrame(points), pd.DataFrame(baselines)


def _value(record: TrialRecord) -> float:
    return record.objectives.get(OBJECTIVE, float("nan"))


def trials_to_find(values: pd.Series, best: set, *, search: str, seed: int) -> int:
    """The number of the first trial in the best region; NUM_TRIALS + 1 when none is."""
    config = TuneConfig(space=SPACE, search="tpe", num_trials=NUM_TRIALS, objectives=(OBJECTIVE,))
    algorithm = tpe(config, [], seed=seed)
    by_chance = np.random.default_rng(seed).permutation(len(values))  # never the same point twice
    for number in range(NUM_TRIALS):
        if search == "random":
            key = values.index[by_chance[number]]
        else:
            point = algorithm.suggest(str(number))
            key = (round(point[TAU], 12), point[BETA])
            algorithm.on_trial_complete(str(number), {OBJECTIVE: values[key]}, error=bool(np.isnan(values[key])))
        if key in best:
            return number + 1
    return NUM_TRIALS + 1


def show(points: pd.DataFrame, baselines: pd.DataFrame) -> None:
    """The figures as text."""
    mean = points.mean(axis=1).rename_axis(["tau", "beta"])
    print((100 * mean.unstack("beta")).round(1).to_string())
    best = set(mean.nlargest(round(BEST_SHARE * len(points))).index)
    print(f"best region, {len(best)} of {len(points)} points: {sorted(best)}")
    found = {
        search: np.array(
            [
                trials_to_find(points[world], best, search=search, seed=1000 * world + seed)
                for world in WORLDS
                for seed in SEARCH_SEEDS
            ]
        )
        for search in ("tpe", "random")
    }
    for search, numbers in found.items():
        by_seed = (numbers <= NUM_TRIALS).reshape(len(WORLDS), -1).sum(axis=0)
        print(
            f"{search}: {np.sum(numbers <= NUM_TRIALS)} of {len(numbers)} searches within {NUM_TRIALS} trials, by seed "
            f"{by_seed.tolist()} of {len(WORLDS)} worlds; median trial {np.median(numbers):g}"
        )
    show_regret(points, baselines)


def show_regret(points: pd.DataFrame, baselines: pd.DataFrame) -> None:
    """What the published constants and `auto` give away, world by world."""
    elsewhere = pd.Series({world: best_elsewhere(points, world) for world in points})
    for name in (DEFAULT, AUTO):
        for reference, at_best in (
            ("the grid's best in the same world", points.max()),
            ("the others' best point", elsewhere),
        ):
            regret = 100 * (at_best - baselines.loc[name]).to_numpy()
            print(f"{name}: regret against {reference}: mean {regret.mean():.1f} points, {np.round(regret, 1)}")


def best_elsewhere(points: pd.DataFrame, world: int) -> float:
    """In this world, the accuracy of the point that does best in the others."""
    return float(points[world][points.drop(columns=world).mean(axis=1).idxmax()])


def main() -> None:
    """Train the grid where it is not trained yet, and print the figures."""
    folder, *what = sys.argv[1:]
    if what == ["fresh"]:
        show_regret(*landscape(folder, FRESH_WORLDS, COARSE_SPACE))
    else:
        show(*landscape(folder))


if __name__ == "__main__":
    main()
