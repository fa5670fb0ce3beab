"""The whole pipeline for seven communities, cold start to report, beside the published way of working.

python -m benchmarks.performance.pipeline FOLDER [ROUNDS [CONVERSATIONS]]

scpo_ray is `jobs/pipeline.py` in a process of its own: files to report, with the start of Python and Ray, from a global model
that is there. The published way is carried on from what a part of it takes in the same round: every response scored once in
float32, an interaction a batch; every kept pair trained on once, both sides padded to 512; every model scores the responses of
validation and test pairs. Its start, its data's preparation and its report are not counted. At the end the last round's stages
are shown as the job prints them, and what the same tokens and pairs would take at the peak of the processor's products.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.performance import scoring, training
from benchmarks.performance.rounds import Comparison, Measured
from benchmarks.performance.workload import peaks, prepared
from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import dump_yaml
from scpo_ray.config import Config
from scpo_ray.runtime import connect
from scpo_ray.stages import score
from scpo_ray.stages.scoring_job import cache_address

PARTS = ("scoring", "training", "evaluation")
TRAIN = {"epochs": 1.0, "learning_rate": training.LEARNING_RATE, "precision": "auto"}


def main(folder: str, rounds: str = "5", conversations: str = "400") -> None:
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
        found, job = ours(config)
        directory = RunDirectory(config.run_dir)
        parts = published(directory, scores, lessons)
        comparison.add({"as published": Measured(found.amount, sum(parts)), "scpo_ray": found})
        comparison.write(place / "pipeline.json")
    comparison.notes = {
        "as published": "float32; carried on from a part: scoring, training, evaluation, without its start, data and report",
        "scpo_ray": "cold start to report, nothing in the score cache; precision auto",
    }
    comparison.write(place / "pipeline.json")
    print(comparison.table())
    print(f"\n{job[job.rindex('Stages') :]}")
    print(f"steps: {sum(metrics['wall_time_s'] for metrics in trainings(directory)):.1f} s")
    print(f"as published: {said(parts)}")
    of_token, of_pair = scoring.flops_per_token(scores), training.flops_per_pair(lessons)
    for name, peak in peaks().items():
        print(f"at the peak of products in {name}: {said(of_parts(directory, peak / of_token, peak / of_pair))}")


def said(parts: tuple[float, ...]) -> str:
    """Seconds, of PARTS and of all."""
    each = ", ".join(f"{name} {seconds:.1f}" for name, seconds in zip(PARTS, parts, strict=True))
    return f"{each}, together {sum(parts):.1f} s"


def ours(config: Config) -> tuple[Measured, str]:
    """The job, from nothing, and what it printed."""
    for place in (config.run_dir, cache_address(config)):
        shutil.rmtree(place, ignore_errors=True)
    file = Path(config.run_dir).with_suffix(".yaml")
    file.write_text(dump_yaml(config))
    start = time.perf_counter()
    command = [sys.executable, "jobs/pipeline.py", "--config", str(file)]
    job = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if job.returncode:
        sys.exit(job.stderr)
    pairs = sum(metrics["num_pairs"] for metrics in trainings(RunDirectory(config.run_dir)))
    return Measured(pairs, seconds), job.stderr


def trainings(directory: RunDirectory) -> list[dict]:
    """What is kept of each community's."""
    return [directory.read_json(f"reward_models/{name}/metrics.json") for name in directory.names("reward_models")]


def published(directory: RunDirectory, scores: scoring.Work, lessons: training.Work) -> tuple[float, ...]:
    """Seconds of PARTS, carried on from the speeds of a part."""
    return of_parts(directory, scoring.loop(scores, scores.interactions).rate, training.published(lessons).rate)


def of_parts(directory: RunDirectory, tokens_per_s: float, pairs_per_s: float) -> tuple[float, ...]:
    """Seconds of PARTS at these speeds."""
    scored, evaluated = (
        int(str(directory.require(name, job="pipeline").statistics["num_tokens"])) for name in ("scores", "evaluation")
    )
    assert scored and evaluated, "everything was scored in this round"
    pairs = sum(metrics["num_pairs"] for metrics in trainings(directory))
    return scored / tokens_per_s, pairs / pairs_per_s, evaluated / tokens_per_s


if __name__ == "__main__":
    main(*sys.argv[1:])
