"""What the method does on planted truth: five atlas worlds with extreme outliers.

python -m benchmarks.planted_worlds [LEARNING_RATE ...]

prints, for each learning rate of the communities' models, what docs/atlas.md quotes. tests/stages/test_atlas_claims.py
bounds the figures of the first.

The harm of outliers is measured by a twin of every model: the same ruler, pairs, order, number of steps and test pairs,
but the planted outliers among its training pairs weigh nothing.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.config import Config
from scpo_ray.core.accuracy import pair_correctness
from scpo_ray.records import ModelName
from scpo_ray.runtime import connect
from scpo_ray.stages import evaluate, prepare, score, select, train, train_global
from scpo_ray.stages.evaluate import load_inputs
from scpo_ray.stages.scoring_job import ModelToScore, score_models
from scpo_ray.training.task import TrainingTask
from scpo_ray.training.workers import run_tasks

SEEDS = (0, 1, 2, 3, 4)
STRATEGIES = ("filter_weight", "filter")
LEARNING_RATE = 5e-4
ATLAS = {
    "majority_annotators": 60,
    "minority_annotators": 20,
    "num_minorities": 2,
    "outlier_rate": 0.08,
    "noise_rate": 0.05,
}
"""What is planted in every world."""
FORMAT = {"max_tokens": 96}
RULER = {"epochs": 5, "learning_rate": 1e-3}


def world_config(folder: str, seed: int, learning_rate: float | None = None) -> Config:
    """The test-sized setting, the same budgets in every world; without a learning rate, the world of the ruler alone."""
    is_ruler = learning_rate is None
    ruler = f"{folder}/seed-{seed}-ruler"
    return Config(
        run_dir=ruler if is_ruler else f"{folder}/seed-{seed}-rate-{learning_rate:g}",
        seed=seed,
        prepare={"atlas": ATLAS},
        format=FORMAT,
        train_global=RULER if is_ruler else {"model": f"{ruler}/global_model", "epochs": 0},
        select={"strategy": STRATEGIES[0], "controls": STRATEGIES[1:]},
        train={"epochs": 2, "learning_rate": learning_rate or LEARNING_RATE},
        evaluate={"num_resamples": 200},
    )


@dataclass(frozen=True)
class World:
    """What was decided and learned in one world."""

    decisions: dict[str, dict[str, float]]
    """Planted kind -> share, kept share, mean weight of the kept; training pairs of the minorities."""
    gains: dict[str, float]
    """Community -> SCPO's overall accuracy minus the global model's."""
    truth: dict[tuple[str, str], float]
    """(strategy or `global`, community) -> accuracy on test pairs whose label is the community's true preference."""
    twins: dict[tuple[str, str], float]
    """The same for the twins that outliers did not touch."""

    def harm(self, strategy: str) -> float:
        """True accuracy that the planted outliers cost a strategy's models, mean over communities."""
        keys = [key for key in self.twins if key[0] == strategy]
        return float(np.mean([self.twins[key] - self.truth[key] for key in keys]))


def make_worlds(folder: str, *, learning_rate: float = LEARNING_RATE) -> list[World]:
    """All worlds at one training budget; two Ray Train jobs train all of their models."""
    _train_rulers(folder)
    configs = [world_config(folder, seed, learning_rate) for seed in SEEDS]
    planned: list[dict[ModelName, TrainingTask]] = []
    for config in configs:
        for stage in (prepare, train_global, score, select):
            stage.run(config)
        tasks, outcome = train.plan(config, RunDirectory(config.run_dir))
        assert outcome.failed == {}
        planned.append(tasks)
    twins = [
        {name: _twin(config, name, task) for name, task in tasks.items()}
        for config, tasks in zip(configs, planned, strict=True)
    ]
    jobs = [_named(task) for tasks in (*planned, *twins) for task in tasks.values()]
    if jobs:
        assert run_tasks(jobs, jobs[0].config).failed == {}
    return [_measure(config, of_world) for config, of_world in zip(configs, twins, strict=True)]


def _train_rulers(folder: str) -> None:
    tasks = []
    for seed in SEEDS:
        config = world_config(folder, seed)
        prepare.run(config)
        directory = RunDirectory(config.run_dir)
        if directory.find("global_model") is None:
            tasks.append(_named(train_global.plan(config, directory)))
    if tasks:
        assert run_tasks(tasks, tasks[0].config).failed == {}


def _named(task: TrainingTask) -> TrainingTask:
    """One job trains tasks of several run directories: their names must differ."""
    return replace(task, card=task.card | {"name": f"{task.recipe.name} {task.run_address}"})


def _twin(config: Config, name: ModelName, task: TrainingTask) -> TrainingTask:
    """The same training with the planted outliers' weights at zero: still in their batches, without a gradient."""
    directory = RunDirectory(config.run_dir)
    truth = directory.read_table("prepared/pair_truth.parquet")
    outliers = truth.filter(pc.equal(truth["kind"], "outlier"))["pair_id"]
    decisions = directory.read_table(str(task.decisions))
    is_outlier = pc.is_in(decisions["pair_id"], outliers.combine_chunks())
    weights = pc.if_else(is_outlier, pa.scalar(0.0), decisions["weight"])
    column = decisions.schema.get_field_index("weight")
    recipe = Recipe(f"twins/decisions/{name.arm}", "select", {}, {}, config.seed)
    if directory.find(recipe.name) is None:
        with recipe.making(directory) as draft:
            draft.write_table("decisions.parquet", decisions.set_column(column, "weight", weights))
    return replace(
        task,
        recipe=replace(task.recipe, name=f"twins/{task.recipe.name}"),
        decisions=f"{recipe.name}/decisions.parquet",
    )


def _measure(config: Config, twins: dict[ModelName, TrainingTask]) -> World:
    evaluate.run(config)
    run = RunDirectory(config.run_dir)
    truth = run.read_table("prepared/pair_truth.parquet").to_pandas().set_index("pair_id")
    inputs = load_inputs(config, run)
    wanted = [
        ModelToScore(str(name), str(run.fetch(task.recipe.name)), inputs.test[name.community].response_ids)
        for name, task in twins.items()
    ]
    scores, _ = score_models(wanted, config)
    of_twins = {}
    for name in twins:
        pairs = inputs.test[name.community]
        is_true = truth.loc[pairs.table["pair_id"].to_pylist(), "utility_gap"].to_numpy() > 0
        of_twins[name.arm, name.community] = float(pairs.correct(scores[str(name)])[is_true].mean())
    overall, true_accuracy = _accuracies(run.read_table("evaluation/rewards.parquet").to_pandas(), truth)
    gains = {
        community: value - overall["global", community]
        for (arm, community), value in overall.items()
        if arm == STRATEGIES[0]
    }
    return World(_decisions_by_kind(run, truth), gains, true_accuracy, of_twins)


def _accuracies(rewards: pd.DataFrame, truth: pd.DataFrame) -> tuple[dict, dict]:
    """(arm, community) -> accuracy on all, and on truly labelled, test pairs of the model's own community."""
    rewards["arm"] = rewards.model.str.split("/").str[0]
    is_own = (rewards.arm == "global") | (rewards.model.str.split("/").str[1] == rewards.community)
    rewards["is_true"] = truth.loc[rewards.pair_id, "utility_gap"].to_numpy() > 0
    overall, true_accuracy = {}, {}
    for key, rows in rewards[is_own & (rewards.community != "Atlas")].groupby(["arm", "community"]):
        correct = pair_correctness(
            chosen_rewards=rows.reward_chosen.to_numpy(), rejected_rewards=rows.reward_rejected.to_numpy()
        )
        overall[key] = float(correct.mean())
        true_accuracy[key] = float(correct[rows.is_true.to_numpy()].mean())
    return overall, true_accuracy


def _decisions_by_kind(run: RunDirectory, truth: pd.DataFrame) -> dict[str, dict[str, float]]:
    is_training = (pc.field("split") == "train") & (pc.field("community") != "Atlas")
    decisions = run.read_table("decisions/filter_weight/decisions.parquet", filters=is_training).to_pandas()
    decisions["kind"] = truth.loc[decisions.pair_id, "kind"].to_numpy()
    return {
        str(kind): {
            "share": len(rows) / len(decisions),
            "kept": float(rows.kept.mean()),
            "weight": float(rows.weight[rows.kept].mean()),
        }
        for kind, rows in decisions.groupby("kind")
    }


def mean_truth(worlds: Sequence[World], strategy: str) -> float:
    """True accuracy of a strategy's models (or of `global`), mean over worlds and communities."""
    return float(np.mean([value for world in worlds for (arm, _), value in world.truth.items() if arm == strategy]))


def show(worlds: Sequence[World]) -> None:
    """The figures as text."""
    for kind in ("agreement", "culture", "noise", "outlier"):
        rows = [world.decisions[kind] for world in worlds]
        print(f"{kind:<14}", {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]})
    gains = [gain for world in worlds for gain in world.gains.values()]
    print(f"SCPO's gain over the global model: {100 * min(gains):+.1f} to {100 * max(gains):+.1f} points")
    print(f"{'global':<14} true accuracy {100 * mean_truth(worlds, 'global'):.1f}")
    for strategy in STRATEGIES:
        harms = [100 * world.harm(strategy) for world in worlds]
        print(
            f"{strategy:<14} true accuracy {100 * mean_truth(worlds, strategy):.1f}, harm by outliers "
            f"{np.mean(harms):+.2f} points, by world {np.round(harms, 1)}"
        )


def main() -> None:
    """Print the figures of every learning rate on the command line."""
    connect()
    rates = [float(text) for text in sys.argv[1:]] or [LEARNING_RATE]
    with tempfile.TemporaryDirectory() as folder:
        for rate in rates:
            print(f"\nlearning rate {rate:g}", flush=True)
            show(make_worlds(folder, learning_rate=rate))


if __name__ == "__main__":
    main()
