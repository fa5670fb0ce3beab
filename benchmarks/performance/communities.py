"""What a further community costs beside its own training.

python -m benchmarks.performance.communities FOLDER [CONVERSATIONS [NUMBER]]

LoRA on MiniLM, a few steps for each of the seven minorities of PRISM-shaped data, in one worker group; with NUMBER, for so many
countries of GlobalOpinionQA (SCPO_REAL_DATA), those with the most pairs. A community's cost is the time between its model's
manifest and the one before it, without the steps' own time as its `metrics.json` says: copying the base, reading and formatting
pairs, DeepSpeed's engine, merging, writing.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.performance.rounds import circumstances
from benchmarks.performance.workload import data_settings, prepared
from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config, LoraConfig
from scpo_ray.runtime import connect
from scpo_ray.stages import score, select, train

TRAIN = {"max_steps": 4, "lora": LoraConfig(enabled=True, rank=16), "learning_rate": 1e-4, "min_pairs": 1}


def main(folder: str, conversations: str = "300", number: str = "") -> None:
    """Prints a table of how time grows with their number; keeps FOLDER/communities.json."""
    place = Path(folder).absolute()
    if number:
        settings = data_settings(place, 0, "opinions") | {"communities": None}
        config = prepared(place, 0, data=settings)
        config = with_communities(config, most_pairs(RunDirectory(config.run_dir), int(number)))
    else:
        config = prepared(place, int(conversations))
    config = config.model_copy(
        update={
            "select": config.select.model_copy(update={"controls": ()}),
            "train": config.train.model_copy(update=TRAIN),
            "rebuild": True,
        }
    )
    connect()
    for stage in (score, select):
        stage.run(config.model_copy(update={"rebuild": False}))
    began = time.time()
    train.run(config)
    found = overheads(RunDirectory(config.run_dir), began)
    rest = [overhead for _, overhead in list(found.values())[1:]]
    print(f"second to last: {statistics.median(rest):.2f} s in the median, {max(rest):.2f} s at most\n")
    print(table(list(found.values())))
    (place / "communities.json").write_text(json.dumps(circumstances() | {"communities": found}, indent=1) + "\n")


def most_pairs(directory: RunDirectory, number: int) -> list[str]:
    """Communities beside the majority."""
    statistics_of = directory.require("prepared", job="prepare").statistics
    known, majority = statistics_of["communities"], statistics_of["majority"]
    assert isinstance(known, dict) and isinstance(majority, list)
    return sorted(known.keys() - set(majority), key=lambda name: -known[name]["train"])[:number]


def with_communities(config: Config, communities: list[str]) -> Config:
    """Trained are these."""
    return config.model_copy(update={"train": config.train.model_copy(update={"communities": tuple(communities)})})


def overheads(directory: RunDirectory, began: float) -> dict[str, tuple[float, float]]:
    """Model -> (seconds of its steps, seconds between the model before it and itself, beyond that), in the order of making.

    Args:
        began: when the stage did, by the clock: the first model's cost is the start of the worker group, too.
    """
    models = sorted(
        Path(directory.path("reward_models")).glob("*/manifest.json"), key=lambda path: path.stat().st_mtime
    )
    found, before = {}, began
    for path in models:
        training = json.loads((path.parent / "metrics.json").read_text())["wall_time_s"]
        made = path.stat().st_mtime
        found[path.parent.name] = (training, made - before - training)
        before = made
    return found


def table(each: Sequence[tuple[float, float]]) -> str:
    """Of the first, the first two, four, ... communities: Markdown.

    Args:
        each: (seconds of its steps, seconds beside them), in the order of making.
    """
    rows = ["| communities | s | of these steps | beside them, each of the last |", "|---|---|---|---|"]
    before, number = 0, 1
    while before < len(each):
        known, last = each[:number], [beside for _, beside in each[before:number]]
        steps = sum(training for training, _ in known)
        total = steps + sum(beside for _, beside in known)
        rows.append(f"| {len(known)} | {total:.1f} | {steps:.1f} | {statistics.median(last):.2f} |")
        before, number = number, 2 * number
    return "\n".join(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
