"""Reward models from elsewhere, compared on any prepared pairs: no ruler, no training, every community's pairs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray import model_files, models
from scpo_ray.artifacts import Manifest, Recipe, RunDirectory
from scpo_ray.config import Config, PairFilesConfig
from scpo_ray.core.bootstrap import cluster_bootstrap_mean
from scpo_ray.datasets import pair_files
from scpo_ray.errors import ConfigError, DataError
from scpo_ray.evaluation.comparisons import COMPARISONS, comparison_rows
from scpo_ray.evaluation.matrices import TRANSFER
from scpo_ray.evaluation.measures import DIAGNOSTICS, diagnostics
from scpo_ray.evaluation.overlap import Overlap, training_contexts, without_overlap
from scpo_ray.evaluation.pairs import PairSet, pooled, response_lengths
from scpo_ray.records import ALL_COMMUNITIES
from scpo_ray.reporting.evidence import estimate_of
from scpo_ray.reporting.model_page import ModelPage, render_models
from scpo_ray.reporting.numbers import p_value, percent, percent_interval, points
from scpo_ray.stages import prepare, recipes
from scpo_ray.stages.scoring_job import ModelToScore, score_with_progress

NAME = "model_evaluation"
PAGE = "models.html"
_COLUMNS = ["pair_id", "community", "annotator_id", "prompt_group", "chosen_id", "rejected_id", "split"]


@dataclass(frozen=True)
class _Inputs:
    """The pairs to compare on, and those on which temperatures are fitted."""

    measured: pa.Table
    validation: pa.Table
    lengths_of: pa.Table
    about: str
    """Which pairs they are, in words."""


def run(config: Config) -> str:
    """Prepare the pairs where that is still to do, score them with every model, compare; return the page's path.

    Raises:
        ModelError: a model cannot be used.
        DataError: there is no pair to compare on, or what the models were trained on cannot be read.
    """
    _check_names(config)
    directory = RunDirectory(config.run_dir)
    folders = {address: model_files.resolve(address) for address in config.evaluate.models}
    for folder in folders.values():
        models.check(folder, may_lack_head=False, max_tokens=config.format.max_tokens)
    seen = [_contexts_of(address, config) for address in config.evaluate.trained_on]
    prepare.run(config)
    recipe = _recipe(
        config, directory, {name: model_files.content_hash(folder) for name, folder in folders.items()}, seen
    )
    if recipe.is_made(directory, rebuild=config.rebuild) is None:
        _make(config, directory, recipe, folders, _inputs(config, directory, set().union(*seen)))
    page = _page(config, directory.require(recipe.name, job="evaluate"))
    directory.write_file(PAGE, render_models(page).encode())
    return directory.path(PAGE)


def _make(
    config: Config, directory: RunDirectory, recipe: Recipe, folders: Mapping[str, Path], inputs: _Inputs
) -> None:
    everything = pa.concat_tables([inputs.measured, inputs.validation])
    needed = pa.array(
        sorted({*everything["chosen_id"].to_pylist(), *everything["rejected_id"].to_pylist()}), pa.string()
    )
    with recipe.making(directory) as draft:
        wanted = [ModelToScore(name, str(folder), needed) for name, folder in folders.items()]
        scores, cost = score_with_progress("evaluate", wanted, config)
        for name, table in _tables(config, inputs, scores).items():
            draft.write_table(f"{name}.parquet", table)
        draft.statistics |= asdict(cost) | {"padding_share": round(cost.padding_share, 6), "pairs": inputs.about}


def _check_names(config: Config) -> None:
    if "global" in config.evaluate.models:
        raise ConfigError("evaluate.models: a model cannot be called 'global'; give its path as ./global")


def _contexts_of(address: str, config: Config) -> set[str]:
    """Ids of the contexts that a pair file, or the training pairs of a run directory, hold."""
    run = RunDirectory(address)
    if run.find(recipes.PREPARED) is not None:
        pairs = run.read_table("prepared/pairs.parquet", columns=["chosen_id"], filters=pc.field("split") == "train")
        responses = run.read_table(
            "prepared/responses.parquet",
            columns=["context"],
            filters=pc.field("response_id").isin(pairs["chosen_id"].combine_chunks()),
        )
        return training_contexts(responses["context"].to_pylist())
    dataset = pair_files.read(PairFilesConfig(paths=(address,)), min_score_gap=config.prepare.min_score_gap)
    dataset.ledger.check(config.prepare.max_rejected_share)
    return training_contexts(dataset.responses["context"].to_pylist())


def _recipe(config: Config, directory: RunDirectory, hashes: dict[str, str], seen: list[set[str]]) -> Recipe:
    identity = config.evaluate.identity("evaluate") | config.format.identity("format")
    identity |= {"score.precision": recipes.score_precision(config), "seed": config.seed}
    prepared = recipes.checked(directory, recipes.prepared(config)).content_hash
    trained_on = {
        f"evaluate.trained_on {address}": recipes.content_of(contexts)
        for address, contexts in zip(config.evaluate.trained_on, seen, strict=True)
    }
    return Recipe(NAME, "evaluate", identity, {**hashes, **trained_on, recipes.PREPARED: prepared}, config.seed)


def _inputs(config: Config, directory: RunDirectory, seen: set[str]) -> _Inputs:
    pairs = directory.read_table("prepared/pairs.parquet", columns=_COLUMNS)
    splits = config.evaluate.model_splits
    measured = pairs.filter(pc.is_in(pairs["split"], pa.array(splits)))
    if not len(measured):
        raise DataError(
            f"{directory.path('prepared')}: no pairs in {' and '.join(splits)}; raise prepare.test_fraction, or see "
            "evaluate.model_splits"
        )
    responses = directory.read_table("prepared/responses.parquet", columns=["response_id", "context", "response"])
    overlap, validation = Overlap(measured, 0), pairs.filter(pc.equal(pairs["split"], "validation"))
    if seen:
        context_of = dict(zip(responses["response_id"].to_pylist(), responses["context"].to_pylist(), strict=True))
        overlap = without_overlap(measured, context_of, seen)
        validation = without_overlap(validation, context_of, seen).pairs
        if not len(overlap.pairs):
            raise DataError(
                f"evaluate.trained_on: the contexts of all {len(measured)} pairs occur there, so nothing is left to "
                "measure; evaluate on pairs that the models were not trained on"
            )
    about = (
        f"{len(overlap.pairs):,} of {len(pairs):,} prepared pairs ({' and '.join(splits)}; see evaluate.model_splits). "
        f"{overlap.words or _unknown(config)}"
    )
    return _Inputs(overlap.pairs, validation, response_lengths(responses), about)


def _unknown(config: Config) -> str:
    if config.evaluate.trained_on:
        return "None of their contexts occurs in what evaluate.trained_on names."
    return "Whether a model was trained on some of them is not known here; evaluate.trained_on leaves such pairs out."


def _tables(config: Config, inputs: _Inputs, scores: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """accuracy (columns TRANSFER), comparisons with the first model, diagnostics."""
    first = next(iter(scores))
    whole, held_out = (
        PairSet(ALL_COMMUNITIES, part, scores[first], inputs.lengths_of)
        for part in (inputs.measured, inputs.validation)
    )
    communities = sorted(set(inputs.measured["community"].to_pylist()))
    sets = [whole.of(name) for name in communities]
    if len(sets) > 1:
        sets.append(pooled(ALL_COMMUNITIES, sets))
    accuracy: list[dict] = []
    measured: list[dict] = []
    correct: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}
    for pairs in sets:
        of_community = held_out if pairs.name == ALL_COMMUNITIES else held_out.of(pairs.name)
        for model, table in scores.items():
            values = pairs.correct(table)
            correct.setdefault((pairs.name, "overall"), {})[model] = [values]
            estimate = cluster_bootstrap_mean(
                values, clusters=pairs.cluster_codes, num_resamples=config.evaluate.num_resamples, seed=config.seed
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


def _page(config: Config, manifest: Manifest) -> ModelPage:
    tables = {
        name: RunDirectory(config.run_dir).read_table(f"{NAME}/{name}.parquet").to_pylist()
        for name in ("accuracy", "comparisons", "diagnostics")
    }
    accuracy: dict[str, dict] = {}
    for row in tables["accuracy"]:
        accuracy.setdefault(row["community"], {})[row["model"]] = estimate_of(row)
    measured: dict[tuple[str, str], dict[str, float]] = {}
    for row in tables["diagnostics"]:
        measured.setdefault((row["community"], row["arm"]), {})[row["measure"]] = row["value"]
    return ModelPage(
        title=config.report.title if "title" in config.report.model_fields_set else "Reward models compared",
        run_dir=config.run_dir,
        seed=config.seed,
        created=manifest.created,
        models=config.evaluate.models,
        accuracy=accuracy,
        comparisons=tables["comparisons"],
        diagnostics=measured,
        hashes={model: manifest.inputs[model] for model in config.evaluate.models},
        packages=manifest.packages,
        about_pairs=str(manifest.statistics["pairs"]),
    )


def summary(config: Config) -> str:
    """One line per community and model, and which pairs they are about, for the terminal."""
    directory = RunDirectory(config.run_dir)
    against = {
        (row["arm"], row["community"]): row for row in directory.read_table(f"{NAME}/comparisons.parquet").to_pylist()
    }
    lines = []
    for row in directory.read_table(f"{NAME}/accuracy.parquet").to_pylist():
        line = f"{row['community']}: {row['model']}: {percent(row['value'])} {percent_interval(estimate_of(row))}"
        other = against.get((row["model"], row["community"]))
        if other is not None:
            line += f", {points(other['difference'])} points against {other['against']} (p after Holm {p_value(other['p_holm'])})"
        lines.append(f"{line}, {row['num_pairs']} pairs")
    lines.append(str(directory.require(NAME, job="evaluate").statistics["pairs"]))
    return "\n".join(lines)
