"""Rewards of the global model for every response, each computed once and kept by content."""

from dataclasses import asdict

from scpo_ray.artifacts import Manifest, RunDirectory
from scpo_ray.config import Config
from scpo_ray.stages import recipes
from scpo_ray.stages.global_model import global_model_address
from scpo_ray.stages.scoring_job import ModelToScore, score_with_progress
from scpo_ray.stages.turns import turn


def run(config: Config) -> Manifest:
    """Score what the cache lacks; write `scores`, and `other_scores` where a control needs it. Returns the first's manifest.

    What is already made is found on disk. Another job in this stage is waited for.
    """
    directory = RunDirectory(config.run_dir)
    with turn(directory, "score", config.train.checkpoint_dir):
        manifest = _make(config, directory, other=False)
        if config.select.needs_other_ruler:
            _make(config, directory, other=True)
    return manifest


def _make(config: Config, directory: RunDirectory, *, other: bool) -> Manifest:
    recipe = recipes.scores(config, directory, other=other)
    made = recipe.is_made(directory, rebuild=config.rebuild)
    if made is not None:
        return made
    address = directory.shared_address(recipes.OTHER_RULER) if other else global_model_address(directory)
    response_ids = directory.read_table("prepared/responses.parquet", columns=["response_id"])["response_id"]
    with recipe.making(directory) as draft:
        wanted = [ModelToScore(recipe.name, address, response_ids.combine_chunks())]
        tables, cost = score_with_progress("score", wanted, config)
        draft.write_table("scores.parquet", tables[recipe.name])
        draft.statistics |= asdict(cost) | {
            "padding_share": round(cost.padding_share, 6),
            "num_cached": len(response_ids) - cost.num_responses,
            "num_truncated": sum(tables[recipe.name]["truncated"].to_pylist()),
        }
    return directory.require(recipe.name, job="score")
