"""How jobs fare that are disturbed: one row per job and seed.

python -m tests.chaos FOLDER SEED [SEED ...]
"""

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scpo_ray.config.cluster import NodeShape
from tests.chaos.faults import KINDS, Outcome, Schedule, disturb, left_over
from tests.chaos.jobs import Job, Result, pipeline_job, ppo_job, tune_job
from tests.clusters import Cluster, cluster

NODES = (NodeShape(name="head", num_cpus=2), NodeShape(name="second", num_cpus=2))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=lambda text: Path(text).resolve())
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--jobs", nargs="+", default=["pipeline", "tune", "ppo"])
    parser.add_argument("--faults", type=int, default=4)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    arguments = parser.parse_args()
    console, rows = Console(width=160), []
    with cluster(*NODES) as two_nodes:
        for name in arguments.jobs:
            undisturbed, start = None, base(name, arguments.folder, two_nodes)
            for seed in (None, *arguments.seeds):
                job = copied(name, start, arguments.folder / f"{name}-{'undisturbed' if seed is None else seed}")
                schedule = Schedule(
                    seed or 0,
                    num_faults=0 if seed is None else arguments.faults,
                    kinds=tuple(arguments.kinds),
                    calm_until=job.calm_until,
                    mean_gap_s=job.mean_gap_s,
                )
                outcome = disturb(two_nodes, job.command(), job.run_dir, schedule)
                row = described(job, seed, outcome, left_over(two_nodes, job.command(), job.run_dir))
                found = (outcome.seconds, job.result(job.config))
                undisturbed = undisturbed or found
                row |= {"lost_s": outcome.seconds - undisturbed[0], "difference": difference(found[1], undisturbed[1])}
                console.print_json(json.dumps(row))
                rows.append(row)
    (arguments.folder / "reliability.json").write_text(json.dumps(rows, indent=2))
    console.print(table(rows))


def base(name: str, folder: Path, two_nodes: Cluster) -> Path | None:
    """A run directory with all that a job reads, made by the jobs before it; None where it reads nothing."""
    jobs = {
        "pipeline": ("prepare", "train_global"),  # thrown away: the first job on a node starts more slowly than others
        "tune": ("prepare", "train_global", "score"),
        "ppo": ("prepare", "train_global", "score", "select", "train", "sft"),
    }[name]
    place = folder / f"{name}-base" / "run"
    for job in jobs:
        made = MAKERS[name](place, on_both_nodes=True)
        disturb(
            two_nodes, [*made.command()[:1], f"jobs/{job}.py", *made.command()[2:]], place, Schedule(0, num_faults=0)
        )
    return place if name != "pipeline" else None


MAKERS = {"pipeline": pipeline_job, "tune": tune_job, "ppo": ppo_job}


def copied(name: str, start: Path | None, place: Path) -> Job:
    """The job in a run directory of its own."""
    if start is not None:
        shutil.copytree(start.parent, place)
    return MAKERS[name](place / "run", on_both_nodes=True)


def described(job: Job, seed: int | None, outcome: Outcome, left: list[str]) -> dict:
    return {
        "job": job.name,
        "seed": seed,
        "seconds": outcome.seconds,
        "submissions": outcome.submissions,
        "faults": dict(Counter(fault.kind for fault in outcome.faults)),
        "victims": [f"{fault.at_s:.0f} s: {fault.victim}" for fault in outcome.faults],
        "ends": outcome.ends,
        "lost": outcome.lost,
        "left": left,
    }


def difference(found: Result, expected: Result) -> str:
    """ "none" where they are the same to the last bit; else the largest, relative to the larger of 1 and the value."""
    if found == expected:
        return "none"
    if found.keys() != expected.keys():
        return f"only in one: {sorted(found.keys() ^ expected.keys())}"
    largest = 0.0
    for key, one in found.items():
        other = expected[key]
        if (
            isinstance(one, dict)
            and isinstance(other, dict)
            and all(isinstance(value, float | int) for value in one.values())
        ):
            largest = max(largest, *(abs(one[name] - other[name]) / max(1, abs(other[name])) for name in one))
        elif one != other:
            return f"{key}: {one} and {other}"
    return f"{largest:.1e}"


def table(rows: list[dict]) -> Table:
    made = Table("job", "seed", "faults", "submissions", "seconds", "lost s", "difference", "lost", "left over")
    for row in rows:
        faults = ", ".join(f"{number} {kind}" for kind, number in row["faults"].items())
        values = (row["job"], row["seed"], faults, row["submissions"], round(row["seconds"]), round(row["lost_s"]))
        made.add_row(*map(str, values), row["difference"], str(len(row["lost"])), str(len(row["left"])))
    return made


if __name__ == "__main__":
    main()
