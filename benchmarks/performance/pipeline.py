"""The whole pipeline for seven communities, cold start to report, beside the published way of working.

python -m benchmarks.performance.pipeline FOLDER [ROUNDS [CONVERSATIONS]]

scpo_ray is `jobs/pipeline.py` in a process of its own: files to report, with the start of Python and Ray, from a global model
that is there. The published way is carried on from what a part of it takes in the same round: every response scored once in
float32, an interaction a batch; every kept pair trained on once, both sides padded to 512; every model scores the responses of
validation and test pairs. Its start, its data's preparation and its report are not counted.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.performance import scoring, training
from benchmarks.performance.rounds import Comparison, Measured
from benchmarks.performance.workload import prepared
from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import dump_yaml
from scpo_ray.config import Config
from scpo_ray.runtime import connect
from scpo_ray.stages import score
from scpo_ray.stages.scoring_job import cache_address

TRAIN = {"epochs": 1.0, "learning_rate": training.LEARNING_RATE, "precision": "auto"}


def main(folder: str, rounds: str = "5", conversations: str = "200") -> None:
    """Measure; the table on stdout, all figures in FOLDER/pipeline.json."""
    torch.set_num_threads(2)
    place = Path(folder).absolute()
    connect()
    known = prepared(place, int(conversations))
    score.run(known)
    scores = scoring.Work(known)
    lessons = training.make_work(place, int(conversations), 2)
    config = Config(
        run_dir=str(place / "pipeline"),
        prepare=known.prepare.model_dump(),
        train_global={"model": RunDirectory(known.run_dir).path("global_model"), "epochs": 0},
        select={"controls": ()},
        train=TRAIN,
    )
    comparison = Comparison(
        "The whole pipeline",
        f"python -m benchmarks.performance.pipeline FOLDER {rounds} {conversations}",
        "pairs",
        f"MiniLM, seven communities with {conversations} PRISM-shaped conversations in all; pairs that models learned from. The "
        "global model is there.",
    )
    for _ in range(int(rounds)):
        found = ours(config)
        comparison.add({"as published": published(config, scores, lessons), "scpo_ray": found})
    comparison.notes = {
        "as published": "float32; carried on from a part: scoring, training, evaluation, without its start, data and report",
        "scpo_ray": "cold start to report, nothing in the score cache; precision auto",
    }
    comparison.write(place / "pipeline.json")
    print(comparison.table())


def ours(config: Config) -> Measured:
    """The job, from nothing."""
    for place in (config.run_dir, cache_address(config)):
        shutil.rmtree(place, ignore_errors=True)
    file = Path(config.run_dir).with_suffix(".yaml")
    file.write_text(dump_yaml(config))
    start = time.perf_counter()
    subprocess.run([sys.executable, "jobs/pipeline.py", "--config", str(file)], check=True, capture_output=True)
    return Measured(learned(RunDirectory(config.run_dir)), time.perf_counter() - start)


def learned(directory: RunDirectory) -> int:
    """Pairs, over the communities."""
    names = directory.names("reward_models")
    return sum(directory.read_json(f"reward_models/{name}/metrics.json")["num_pairs"] for name in names)


def published(config: Config, scores: scoring.Work, lessons: training.Work) -> Measured:
    """What all of it would take."""
    directory = RunDirectory(config.run_dir)
    tokens_per_s = scoring.loop(scores, scores.interactions).rate
    pairs_per_s = training.published(lessons).rate
    parts = (directory.require(name, job="pipeline").statistics["num_tokens"] for name in ("scores", "evaluation"))
    read = sum(int(str(part)) for part in parts)
    assert read, "everything was scored in this round"
    pairs = learned(directory)
    return Measured(pairs, read / tokens_per_s + pairs / pairs_per_s)


if __name__ == "__main__":
    main(*sys.argv[1:])
