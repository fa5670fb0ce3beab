"""One and two scorers, and one and two training workers, of one thread each; and one with both cores.

python -m benchmarks.performance.workers FOLDER [ROUNDS [CONVERSATIONS [STEPS]]]

MiniLM in float32 on PRISM-shaped data. Scoring's time is the whole stage's, with the start of its actors; training's that of its
steps, between two workers with their sums of gradients.
"""

import sys
from pathlib import Path

import torch

from benchmarks.performance import scoring, training
from benchmarks.performance.rounds import Comparison, Measured
from benchmarks.performance.workload import MODELS, prepared
from scpo_ray.runtime import connect
from scpo_ray.stages import score, train_global

WAYS = {"one, one thread": (1, 1), "two, one thread each": (2, 1), "one, two threads": (1, 2)}
"""Workers, and threads of each."""


def main(folder: str, rounds: str = "5", conversations: str = "100", steps: str = "4") -> None:
    """Measure; tables on stdout, all figures in FOLDER/workers_scoring.json and workers_training.json."""
    torch.set_num_threads(2)
    place = Path(folder).absolute()
    connect()
    known = prepared(place, int(conversations))
    score.run(known)
    work = scoring.Work(known)
    lessons = training.make_work(place, int(conversations), int(steps))
    command = f"python -m benchmarks.performance.workers FOLDER {rounds} {conversations} {steps}"
    about = f"{MODELS['minilm']}, float32, {conversations} PRISM-shaped conversations"
    comparisons = {
        "scoring": Comparison("Workers: scoring", command, "tokens", f"{about}; the whole stage."),
        "training": Comparison(
            "Workers: training", command, "pairs", f"{about}; {steps} steps of 16 interactions, no ZeRO."
        ),
    }
    for _ in range(int(rounds)):
        comparisons["scoring"].add({name: scored(work, *way) for name, way in WAYS.items()})
        comparisons["training"].add({name: trained(lessons, *way) for name, way in WAYS.items()})
    for name, comparison in comparisons.items():
        comparison.write(place / f"workers_{name}.json")
        print(comparison.table())


def scored(work: scoring.Work, number: int, threads: int) -> Measured:
    """The stage with so many actors."""
    changes = {"score.num_scorers": number, "score.threads_per_scorer": threads}
    return scoring.stage(work, "float32", changes)


def trained(work: training.Work, number: int, threads: int) -> Measured:
    """The steps with so many ranks."""
    if work.directory.find("global_model") is not None:
        work.directory.remove("global_model")
    changes = {"train_global.num_workers": number, "train_global.threads_per_worker": threads}
    train_global.run(work.config.with_settings(changes))
    return Measured(work.num_pairs, work.directory.read_json("global_model/metrics.json")["wall_time_s"])


if __name__ == "__main__":
    main(*sys.argv[1:])
