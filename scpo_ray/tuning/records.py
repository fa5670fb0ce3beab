"""What is kept of a trial: one small file each, so that a killed search loses none that was finished."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import pyarrow as pa

from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Value
from scpo_ray.tuning.objectives import METRICS

State = Literal["finished", "stopped", "failed", "interrupted"]


@dataclass(frozen=True)
class TrialRecord:
    """One point of the space and what became of it."""

    digest: str
    """Of everything that its result follows from: two trials with the same one are the same trial."""
    point: dict[str, Value]
    state: State
    """stopped: by the scheduler, since others were better at the same point of their training. interrupted: its workers or
    its disk failed, which says nothing about the point; a rerun tries it again."""
    objectives: dict[str, float] = field(default_factory=dict)
    """Every metric of `tuning.objectives`; NaN where no community has it. Empty for a failed trial."""
    by_community: dict[str, dict[str, float]] = field(default_factory=dict)
    constants: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Community -> τ and β as applied."""
    error: str = ""
    wall_time_s: float = 0.0
    created_s: float = 0.0
    """Since the epoch."""

    @property
    def is_settled(self) -> bool:
        """Nothing is gained by trying it again."""
        return self.state != "interrupted"


class TrialStore:
    """The records of one search; finished trials of the run directory's other searches, and baselines, are found as well.

    It knows the folder `tune/` and nothing beside it: from a trial's store no way leads to test pairs.
    """

    def __init__(self, run: RunDirectory, search: str) -> None:
        self._directory, self._search = RunDirectory(f"{run.absolute_address}/tune"), search

    def all(self) -> list[TrialRecord]:
        """Of this search, oldest first; an interrupted trial that was tried again is there once."""
        read = [self._read(self._search, name) for name in self._directory.names(f"{self._search}/trials")]
        found = [record for record in read if record is not None]
        settled = [record.point for record in found if record.is_settled]
        return sorted(
            (record for record in found if record.is_settled or record.point not in settled),
            key=lambda record: record.created_s,
        )

    def finished(self, digest: str) -> TrialRecord | None:
        """The finished trial of this content, of whichever search."""
        for search in dict.fromkeys((self._search, *self._directory.names(""))):
            for place in (search, f"{search}/baselines"):
                record = self._read(place, f"{digest}.json")
                if record is not None and record.state == "finished":
                    return record
        return None

    def add(self, record: TrialRecord) -> None:
        """Keep a record under this search; one of the same content is replaced."""
        name = f"{self._search}/trials/{record.digest}.json"
        self._directory.write_file(name, json.dumps(asdict(record), indent=1).encode())

    def _read(self, search: str, name: str) -> TrialRecord | None:
        folder = f"{search}/trials"
        if not name.endswith(".json") or name not in self._directory.names(folder):
            return None
        return TrialRecord(**self._directory.read_json(f"{folder}/{name}"))


def trial_table(records: Sequence[TrialRecord], keys: Sequence[str]) -> pa.Table:
    """One row per trial: number, state, a column per searched setting and per metric, seconds, error."""
    rows = []
    for number, record in enumerate(records):
        row: dict[str, object] = {"trial": number, "state": record.state}
        row |= {key: record.point.get(key) for key in keys}
        row |= {metric: record.objectives.get(metric) for metric in METRICS}
        rows.append(row | {"wall_time_s": record.wall_time_s, "error": record.error, "digest": record.digest})
    return pa.Table.from_pylist(_plain(rows, keys))


def _plain(rows: list[dict], keys: Sequence[str]) -> list[dict]:
    """Values of one setting may be of several kinds (0.7 and `auto`): Parquet has one kind per column, so text then."""
    for key in keys:
        kinds = {type(row[key]) for row in rows if row[key] is not None}
        if len(kinds) > 1 and not kinds <= {int, float}:
            for row in rows:
                row[key] = None if row[key] is None else str(row[key])
    return rows
