"""Reward models from elsewhere, compared on any prepared pairs: no ruler, no training, every community's test pairs."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa

from scpo_ray import models
from scpo_ray.artifacts import Manifest, Recipe, RunDirectory
from scpo_ray.config import Config
from scpo_ray.core.bootstrap import cluster_bootstrap_mean
from scpo_ray.errors import ConfigError, DataError
from scpo_ray.evaluation.comparisons import COMPARISONS, comparison_rows
from scpo_ray.evaluation.matrices import TRANSFER
from scpo_ray.evaluation.measures import DIAGNOSTICS, diagnostics
from scpo_ray.evaluation.pairs import PairSet, pooled
from scpo_ray.records import ALL_COMMUNITIES
from scpo_ray.runtime import connect, progress_bar
from scpo_ray.stages import prepare, recipes
from scpo_ray.stages.scoring_job import ModelToScore, score_models

NAME = "model_evaluation"
_COLUMNS = ["pair_id", "community", "annotator_id", "prompt_group", "chosen_id", "rejected_id", "split"]


def run(config: Config) -> Manifest:
    """Prepare the pairs where that is still to do, score them with every model, compare; write `model_evaluation`.

    Raises:
        ModelError: a model cannot be used.
        DataError: there are no test pairs.
    """
    _check_names(config)
    directory = RunDirectory(config.run_dir)
    folders = {address: models.resolve(address) for address in config.evaluate.models}
    for folder in folders.values():
        models.check(folder, may_lack_head=False, max_tokens=config.format.max_tokens)
    prepare.run(config)
    recipe = _recipe(config, directory, {name: models.content_hash(folder) for name, folder in folders.items()})
    made = recipe.is_made(directory, rebuild=config.rebuild)
    if made is not None:
        return made
    test, validation = (_pairs(directory, split) for split in ("test", "validation"))
    if not len(test):
        raise DataError(f"{directory.path('prepared')}: no test pairs; raise prepare.test_fraction")
    everything = pa.concat_tables([test, validation])
    needed = pa.array(
        sorted({*everything["chosen_id"].to_pylist(), *everything["rejected_id"].to_pylist()}), pa.string()
    )
    connect()
    with recipe.making(directory) as draft:
        with progress_bar("evaluate", unit="responses") as bar:
            scores, cost = score_models(
                [ModelToScore(name, str(folder), needed) for name, folder in folders.items()],
                config,
                on_progress=lambda done, total, _: bar.update(done, total),
            )
        for name, table in _tables(config, test, validation, scores).items():
            draft.write_table(f"{name}.parquet", table)
        draft.statistics |= asdict(cost) | {"padding_share": round(cost.padding_share, 6)}
    return directory.require(recipe.name, job="evaluate")


def _check_names(config: Config) -> None:
    if "global" in config.evaluate.models:
        raise ConfigError("evaluate.models: a model cannot be called 'global'; give its path as ./global")


def _recipe(config: Config, directory: RunDirectory, hashes: dict[str, str]) -> Recipe:
    identity = config.evaluate.identity("evaluate") | config.format.identity("format")
    identity |= {"score.precision": recipes.score_precision(config), "seed": config.seed}
    prepared = recipes.checked(directory, recipes.prepared(config)).content_hash
    return Recipe(NAME, "evaluate", identity, {**hashes, recipes.PREPARED: prepared}, config.seed)


def _pairs(directory: RunDirectory, split: str) -> pa.Table:
    return directory.read_table("prepared/pairs.parquet", columns=_COLUMNS, filters=[("split", "=", split)])


def _tables(config: Config, test: pa.Table, validation: pa.Table, scores: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """accuracy (columns TRANSFER), comparisons with the first model, diagnostics."""
    first = next(iter(scores))
    whole, held_out = (PairSet(ALL_COMMUNITIES, table, scores[first]) for table in (test, validation))
    communities = sorted(set(test["community"].to_pylist()))
    sets = [whole.of(name) for name in communities]
    if len(sets) > 1:
        sets.append(pooled(ALL_COMMUNITIES, sets))
    accuracy: list[dict] = []
    measured: list[dict] = []
    correct: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for pairs in sets:
        of_community = held_out if pairs.name == ALL_COMMUNITIES else held_out.of(pairs.name)
        for model, table in scores.items():
            values = pairs.correct(table)
            correct.setdefault((pairs.name, "overall"), {})[model] = values
            estimate = cluster_bootstrap_mean(
                values, clusters=pairs.clusters, num_resamples=config.evaluate.num_resamples, seed=config.seed
            )
            accuracy.append({"model": model, "community": pairs.name, **asdict(estimate)})
            measured += [
                {"arm": model, "community": pairs.name, "replicate": 0, "measure": measure, "value": value}
                for measure, value in diagnostics(pairs, of_community, table).items()
            ]
    about = {(pairs.name, "overall"): pairs for pairs in sets}
    comparisons = comparison_rows(correct, about, [first], config.evaluate, seed=config.seed)
    return {
        "accuracy": pa.Table.from_pylist(accuracy, schema=TRANSFER),
        "comparisons": pa.Table.from_pylist(comparisons, schema=COMPARISONS),
        "diagnostics": pa.Table.from_pylist(measured, schema=DIAGNOSTICS),
    }


def summary(config: Config) -> str:
    """One line per community and model, for the terminal."""
    directory = RunDirectory(config.run_dir)
    against = {
        (row["arm"], row["community"]): row for row in directory.read_table(f"{NAME}/comparisons.parquet").to_pylist()
    }
    lines = []
    for row in directory.read_table(f"{NAME}/accuracy.parquet").to_pylist():
        line = f"{row['community']}: {row['model']}: {100 * row['value']:.1f}% [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        other = against.get((row["model"], row["community"]))
        if other is not None:
            line += f", {100 * other['difference']:+.1f} points against {other['against']} (p after Holm {other['p_holm']:.3f})"
        lines.append(f"{line}, {row['num_pairs']} pairs")
    return "\n".join(lines)
