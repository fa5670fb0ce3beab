"""How fast this machine's disk and Ray's object store are, and what of that reading and handing over responses takes.

python -m benchmarks.performance.bandwidth FOLDER [ROUNDS [CONVERSATIONS]]

A table of PRISM-shaped responses is written to Parquet as `prepare` does, read again, and put into the object store and taken
out, as Ray Data hands blocks over; beside plain bytes of the same size. Units are MB of the table in memory.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.performance.rounds import Comparison, Measured
from benchmarks.prism import write_prism
from scpo_ray.artifacts import ROW_GROUP_SIZE
from scpo_ray.config import PrismConfig
from scpo_ray.datasets import prism
from scpo_ray.runtime import connect


def main(folder: str, rounds: str = "5", conversations: str = "5000") -> None:
    """Measure; the table on stdout, all figures in FOLDER/bandwidth.json."""
    place = Path(folder).absolute()
    write_prism(place / f"prism_{conversations}", int(conversations))
    table = prism.read(
        PrismConfig(path=str(place / f"prism_{conversations}")), min_score_gap=0.0
    ).responses.combine_chunks()
    connect()
    plain = np.random.default_rng(0).integers(0, 256, size=table.nbytes, dtype=np.uint8)
    comparison = Comparison(
        "Disk and object store",
        f"python -m benchmarks.performance.bandwidth FOLDER {rounds} {conversations}",
        "MB",
        f"{len(table):,} PRISM-shaped responses, {table.nbytes / 1e6:.0f} MB in memory.",
        notes={
            "bytes to disk": "written and synchronised",
            "responses to disk": "Parquet, zstd, row groups as `prepare` writes them; synchronised too",
            "bytes from disk": "from the page cache",
            "responses through the object store": "put, which copies them once, and got, which maps them",
        },
    )
    ways: dict[str, Callable[[], None]] = {
        "bytes to disk": lambda: write_bytes(place / "bytes", plain),
        "responses to disk": lambda: write_responses(place / "table.parquet", table),
        "bytes from disk": lambda: keep(np.fromfile(place / "bytes", dtype=np.uint8)),
        "responses from disk": lambda: keep(pq.read_table(place / "table.parquet")),
        "bytes through the object store": lambda: keep(ray.get(ray.put(plain))),
        "responses through the object store": lambda: keep(ray.get(ray.put(table))),
    }
    for way in ways.values():
        way()
    for _ in range(int(rounds)):
        comparison.add({name: timed(way, table) for name, way in ways.items()})
    comparison.write(place / "bandwidth.json")
    print(comparison.table())


def timed(way: Callable[[], None], table: pa.Table) -> Measured:
    """All of the table, or as many bytes."""
    start = time.perf_counter()
    way()
    return Measured(table.nbytes / 1e6, time.perf_counter() - start)


def write_bytes(path: Path, plain: np.ndarray) -> None:
    """Until they are on the disk."""
    with path.open("wb") as file:
        file.write(plain.data)
        file.flush()
        os.fsync(file.fileno())


def write_responses(path: Path, table: pa.Table) -> None:
    """Until they are on the disk."""
    with path.open("wb") as file:
        pq.write_table(table, file, compression="zstd", row_group_size=ROW_GROUP_SIZE)
        file.flush()
        os.fsync(file.fileno())


def keep(_: object) -> None:
    """What was read is there now."""


if __name__ == "__main__":
    main(*sys.argv[1:])
