"""The cost model's memory against what training workers took: weights, gradients, moments and activations of MiniLM, by CPU.

python -m benchmarks.memory FOLDER [CONVERSATIONS]

Each row is a `train_global` of three steps on PRISM-shaped pairs. Measured is the largest worker's resident memory at its peak,
less that of the same training of a model of almost nothing: what Python, torch, DeepSpeed and Ray take.
"""

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.performance.workload import BACKBONE
from benchmarks.prism import write_prism
from scpo_ray.artifacts import RunDirectory
from scpo_ray.capacity import capacity
from scpo_ray.config import Config
from scpo_ray.runtime import connect
from scpo_ray.stages import prepare, train_global
from scpo_ray.stages.plan import estimate

GIB = 2**30
LORA = {"enabled": True, "rank": 16}
ROWS: dict[str, dict] = {
    "one worker": {},
    "one worker, LoRA": {"lora": LORA},
    "one worker, padded, dropout": {"attention": "sdpa"},
    "one worker, padded, checkpointing": {"attention": "sdpa", "gradient_checkpointing": True},
    **{f"two workers, ZeRO {stage}": {"num_workers": 2, "zero_stage": stage} for stage in range(4)},
}
NOTHING = {"model": None, "scratch": {"num_layers": 1, "hidden_size": 32, "num_heads": 1, "vocab_size": 1000}}


@dataclass
class Peak:
    """Bytes of the largest training worker so far."""

    bytes: int = 0


def main(folder: str, conversations: str = "60") -> None:
    """The table on stdout."""
    place = Path(folder).absolute()
    write_prism(place / "prism", int(conversations))
    connect()
    print("| training | predicted, GiB | measured, GiB | |\n|---|---|---|---|")
    for name, settings in ROWS.items():
        found, predicted = measured(place, settings)
        empty, _ = measured(place, settings | NOTHING)
        taken = (found - empty) / GIB
        print(f"| {name} | {predicted / GIB:.2f} | {taken:.2f} | {predicted / GIB / taken - 1:+.0%} |", flush=True)


def measured(place: Path, settings: dict) -> tuple[int, float]:
    """(bytes of a worker at its peak, bytes that the plan says)."""
    train = {
        "model": BACKBONE,
        "max_steps": 3,
        "batch_size": 8,
        "precision": "float32",
        "cpus_per_worker": 1,
    } | settings
    config = Config(
        run_dir=str(place / "run"),
        prepare={"datasets": ["prism"], "prism": {"path": str(place / "prism")}},
        train_global=train,
    )
    directory = RunDirectory(config.run_dir)
    prepare.run(config)
    if directory.find("global_model") is not None:
        directory.remove("global_model")
    planned = estimate(config, directory, "train_global", capacity())
    assert planned is not None and planned.memory_bytes is not None
    with watched() as peak:
        train_global.run(config)
    return peak.bytes, planned.memory_bytes


@contextmanager
def watched() -> Iterator[Peak]:
    """The workers' peak while the block lasts."""
    peak, is_over = Peak(), threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            for process in psutil.process_iter(["cmdline"]):
                if process.info["cmdline"] and process.info["cmdline"][0].startswith("ray::RayTrainWorker"):
                    peak.bytes = max(peak.bytes, high_water(process.pid))
            time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def high_water(pid: int) -> int:
    """Bytes that a process had resident at its peak, as Linux keeps them; 0 of one that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found.group(1)) if found else 0


if __name__ == "__main__":
    main(*sys.argv[1:])
