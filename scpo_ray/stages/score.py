"""Rewards of the global model for every response, each computed once and kept by content."""

from dataclasses import asdict

from scpo_ray.artifacts import Manifest, RunDirectory
from scpo_ray.config import Config
from scpo_ray.runtime import connect, progress_bar
from scpo_ray.stages import recipes
from scpo_ray.stages.global_model import global_model_folder
from scpo_ray.stages.scoring_job import ModelToScore, score_models


def run(config: Config) -> Manifest:
    """Score what the cache lacks; write `scores`. Returns its manifest, from disk when it is already made."""
    directory = RunDirectory(config.run_dir)
    recipe = recipes.scores(config, directory)
    made = recipe.is_made(directory, rebuild=config.rebuild)
    if made is not None:
        return made
    connect()
    response_ids = directory.read_table("prepared/responses.parquet", columns=["response_id"])["response_id"]
    folder = global_model_folder(directory)
    with recipe.making(directory) as draft:
        with progress_bar("score", unit="responses") as bar:
            tables, cost = score_models(
                [ModelToScore("global", str(folder), response_ids.combine_chunks())],
                config,
                on_progress=lambda done, total, _: bar.update(done, total),
            )
        draft.write_table("scores.parquet", tables["global"])
        draft.statistics |= asdict(cost) | {
            "padding_share": round(cost.padding_share, 6),
            "num_cached": len(response_ids) - cost.num_responses,
            "num_truncated": sum(tables["global"]["truncated"].to_pylist()),
        }
    return directory.require(recipe.name, job="score")
