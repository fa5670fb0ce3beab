"""The global reward model: trained on the majority's pairs, or any checkpoint taken as it is."""

from collections.abc import Sequence
from itertools import compress

import pyarrow.compute as pc

from scpo_ray import model_files, models
from scpo_ray.artifacts import Manifest, Recipe, RunDirectory
from scpo_ray.config import Config
from scpo_ray.errors import ConfigError, DataError, TrainingError
from scpo_ray.runtime import connect, progress_bar
from scpo_ray.stages import recipes
from scpo_ray.stages.global_model import REFERENCE
from scpo_ray.stages.prepare import check_known
from scpo_ray.stages.train import show_progress
from scpo_ray.stages.turns import turn
from scpo_ray.training.model_card import licence_of
from scpo_ray.training.task import StartModel, TrainingTask, check_checkpoint_dir
from scpo_ray.training.workers import run_tasks


def run(config: Config) -> Manifest:
    """Write `global_model`, and `other_ruler` where a control needs it. Returns the first's manifest.

    What is already made is found on disk; what is trained, one group of workers trains. Another job in this stage is waited for.
    """
    directory = RunDirectory(config.run_dir)
    check_checkpoint_dir(config.run_dir, config.train_global.checkpoint_dir, "train_global")
    with turn(directory, "train_global", config.train_global.checkpoint_dir):
        return _make(config, directory)


def _make(config: Config, directory: RunDirectory) -> Manifest:
    rulers = (False, True) if config.select.needs_other_ruler else (False,)
    wanted = [recipes.global_model(config, directory, other=other) for other in rulers]
    missing = [recipe.is_made(directory, rebuild=config.rebuild) is None for recipe in wanted]
    if config.train_global.epochs:
        tasks = [plan(config, directory, other=other) for other in compress(rulers, missing)]
        try:
            if tasks:
                _train(tasks, config, directory)
        finally:
            for recipe in wanted:
                directory.remove(_start_folder(recipe))
    elif missing[0]:
        _take_as_it_is(config, directory, wanted[0])
    return directory.require(wanted[0].name, job="train_global")


def _train(tasks: Sequence[TrainingTask], config: Config, directory: RunDirectory) -> None:
    connect(config.log_format)
    with progress_bar("train_global", unit="steps", run=directory.absolute_address) as bar:
        state = run_tasks(tasks, config.train_global, on_progress=lambda state: show_progress(bar, state))
    for reason in state.failed.values():
        raise TrainingError(reason)


def _start_folder(recipe: Recipe) -> str:
    return f"checkpoints/initial_{recipe.name}"


def plan(config: Config, directory: RunDirectory, *, other: bool = False) -> TrainingTask:
    """The training of the global model (or the other ruler) on its communities' training pairs.

    Raises:
        ConfigError: a configured community does not occur.
        DataError: the communities have no training pairs.
        ModelError: the start model cannot be used.
    """
    recipe = recipes.global_model(config, directory, other=other)
    communities = _communities(config, directory)
    pairs = directory.read_table(
        "prepared/pairs.parquet",
        columns=["annotator_id"],
        filters=pc.field("community").isin(communities) & (pc.field("split") == "train"),
    )
    size, annotators = len(pairs), pc.count_distinct(pairs["annotator_id"]).as_py()
    if not size:
        raise DataError(f"train_global.communities: {', '.join(communities)} have no training pairs; name others")
    return TrainingTask(
        recipe=recipe,
        run_address=directory.absolute_address,
        start=_start_model(config, directory, recipe),
        communities=tuple(communities),
        decisions=None,
        config=config.train_global,
        format_config=config.format,
        seed=recipe.seed,
        size=size,
        card={
            "name": "other ruler" if other else "global",
            "communities": communities,
            "start": config.train_global.model or "from scratch",
            "data": list(config.prepare.datasets),
            "licence of the data": licence_of(config.prepare.datasets),
            "training annotators": annotators or "aggregates, no annotators",
        },
    )


def _communities(config: Config, directory: RunDirectory) -> list[str]:
    if config.train_global.communities is None:
        manifest = directory.require(recipes.PREPARED, job="prepare")
        majority = manifest.statistics["majority"]
        general = config.prepare.general_preferences.community
        known = manifest.statistics["communities"]
        assert isinstance(majority, list) and isinstance(known, dict)
        return [
            *majority,
            *([general] if "general_preferences" in config.prepare.datasets and general in known else []),
        ]
    pairs = directory.read_table("prepared/pairs.parquet", columns=["community"])
    check_known("train_global.communities", config.train_global.communities, pairs["community"].to_pylist())
    return list(config.train_global.communities)


def _start_model(config: Config, directory: RunDirectory, recipe: Recipe) -> StartModel:
    """A pretrained backbone with a head drawn from the seed if it has none, or a fresh model saved for the workers."""
    train = config.train_global
    if train.model is not None:
        models.check(model_files.resolve(train.model), may_lack_head=True, max_tokens=config.format.max_tokens)
        return StartModel(model_files.for_workers(train.model), new_head_seed=recipe.seed)
    responses = directory.read_table("prepared/responses.parquet", columns=["context", "response"]).to_pylist()
    texts = (text for row in responses for text in (*(m["content"] for m in row["context"]), row["response"]))
    made = models.make(train.scratch, texts=texts, max_tokens=config.format.max_tokens, seed=recipe.seed)
    start = Recipe(_start_folder(recipe), "train_global", {}, {}, config.seed)
    with start.making(directory) as draft:
        models.save(made.model, made.tokenizer, draft.folder)
    return StartModel(directory.shared_address(start.name))


def _take_as_it_is(config: Config, directory: RunDirectory, recipe: Recipe) -> Manifest:
    address = config.train_global.model
    if address is None:
        raise ConfigError("train_global.epochs: 0 takes a model as it is, but train_global.model is unset; name one")
    folder = model_files.resolve(address)
    models.check(folder, may_lack_head=False, max_tokens=config.format.max_tokens)
    with recipe.making(directory) as draft:
        draft.content_hash = model_files.content_hash(folder)
        draft.write_json(REFERENCE, {"address": model_files.for_workers(address), "content_hash": draft.content_hash})
    return directory.require(recipe.name, job="train_global")
