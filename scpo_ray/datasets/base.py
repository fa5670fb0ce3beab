"""What every adapter returns, and the ledger that accounts for every source row."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO

import pyarrow as pa

from scpo_ray.errors import DataError, StorageError
from scpo_ray.records import OPTION_SHARES, PAIRS, RESPONSES, ContextIds, content_id, table


@dataclass(frozen=True)
class RejectedRow:
    """A source row that made no response or pair, with the place to look."""

    source: str
    file: str
    line: int
    reason: str
    value: str


@dataclass
class RowLedger:
    """Counts that must add up: rows read = rows used + rejected; responses mentioned = responses + merged duplicates."""

    source: str
    rows_read: int = 0
    rows_used: int = 0
    responses_mentioned: int = 0
    responses: int = 0
    rejected: list[RejectedRow] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)
    """What was left out by design (ties, refusals, ...), by reason, in the unit that the reason names."""
    suspicious: list[RejectedRow] = field(default_factory=list)
    """Rows that were used but deserve a look."""

    def reject(self, *, file: str, line: int, reason: str, value: object) -> None:
        """Record a malformed row. `line` counts from 1; `value` is shortened."""
        self.rejected.append(RejectedRow(self.source, file, line, reason, repr(value)[:120]))

    def suspect(self, *, file: str, line: int, reason: str, value: object) -> None:
        """Record a row that is used as it is, but looks wrong."""
        self.suspicious.append(RejectedRow(self.source, file, line, reason, repr(value)[:120]))

    @property
    def merged_duplicates(self) -> int:
        """Mentions of a response that had been seen before in the same context."""
        return self.responses_mentioned - self.responses

    def check(self, max_rejected_share: float) -> None:
        """Raise DataError when the counts do not add up, nothing was used, or too many rows are malformed."""
        if self.rows_read != self.rows_used + len(self.rejected):
            raise DataError(
                f"{self.source}: {self.rows_read} rows read, but {self.rows_used} used + {len(self.rejected)} rejected; "
                "this is a fault of the adapter, please report it"
            )
        if self.rejected and len(self.rejected) > max_rejected_share * self.rows_read:
            first = self.rejected[0]
            raise DataError(
                f"{first.file}:{first.line}: {first.reason}: {first.value} (one of {len(self.rejected)} malformed rows of "
                f"{self.rows_read}); mend them or raise prepare.max_rejected_share"
            )
        if not self.rows_used:
            raise DataError(f"{self.source}: no usable row among {self.rows_read}; check the path and the columns")


@dataclass(frozen=True)
class Dataset:
    """One source, read: unique responses, pairs without splits, the ledger, and the truth where it is known."""

    responses: pa.Table
    pairs: pa.Table
    ledger: RowLedger
    pair_truth: pa.Table | None = None
    response_truth: pa.Table | None = None
    option_shares: pa.Table | None = None
    """How a community's answers spread over a question's options (columns OPTION_SHARES, groups and splits unset)."""


_ROWS_AS_OBJECTS = 1 << 14


class _Rows:
    """Rows of distinct ids. Those of a large data set lie in a file of the folder for temporary ones, mapped into memory.

    Args:
        schema: the columns, the id first.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._identifiers: set[str] = set()
        self._newest: list[dict] = []
        self._file: IO[bytes] | None = None
        self._writer: pa.RecordBatchFileWriter | None = None
        self._thread = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    def __contains__(self, identifier: str) -> bool:
        return identifier in self._identifiers

    def add(self, row: dict) -> None:
        """One row, whose id is new."""
        self._identifiers.add(row[self._schema.names[0]])
        self._newest.append(row)
        if len(self._newest) == _ROWS_AS_OBJECTS:
            self._put_away()

    def table(self) -> pa.Table:
        """All of them, in the order that they came in; none can be added afterwards."""
        if self._written is None:
            return table(self._newest, self._schema)
        self._put_away()
        self._wait()
        self._thread.shutdown()
        assert self._file is not None and self._writer is not None
        self._writer.close()
        with self._file, pa.memory_map(_path(self._file)) as source:
            return pa.ipc.open_file(source).read_all()  # the file's bytes stay until the table goes

    def _put_away(self) -> None:
        rows, self._newest = table(self._newest, self._schema), []
        self._wait()
        self._written = self._thread.submit(self._write, rows)

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def _write(self, rows: pa.Table) -> None:
        try:
            if self._file is None or self._writer is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
                self._writer = pa.ipc.new_file(_path(self._file), self._schema)
            self._writer.write_table(rows)
        except OSError as error:
            raise StorageError(
                f"{tempfile.gettempdir()}: rows cannot be put there for the time being ({error.strerror or error}); "
                "make room, or name another folder in TMPDIR"
            ) from error


def _path(file: IO[bytes]) -> str:
    """What Arrow may open: a temporary file has no name, so that none is left when the process is killed."""
    return f"/dev/fd/{file.fileno()}"


class DatasetBuilder:
    """Collects responses and pairs; merges a response that occurs twice in one context."""

    def __init__(self, source: str) -> None:
        self.ledger = RowLedger(source)
        self._responses, self._pairs = _Rows(RESPONSES), _Rows(PAIRS)
        self._option_shares: list[dict] = []

    def add_responses(
        self, *, context: ContextIds, responses: Iterable[str], interaction_id: str, prompt_id: str
    ) -> list[str]:
        """Return the responses' ids, adding those that are new."""
        found = []
        for response in responses:
            identifier = context.response_id(response)
            self.ledger.responses_mentioned += 1
            if identifier not in self._responses:
                self.ledger.responses += 1
                self._responses.add(
                    {
                        "response_id": identifier,
                        "interaction_id": interaction_id,
                        "context": context.messages,
                        "response": response,
                        "prompt_id": prompt_id,
                    }
                )
            found.append(identifier)
        return found

    def add_pair(
        self,
        *,
        interaction_id: str,
        community: str,
        annotator_id: str | None,
        prompt_id: str,
        chosen_id: str,
        rejected_id: str,
        score_chosen: float | None = None,
        score_rejected: float | None = None,
        occurrence: int | str = 0,
    ) -> str:
        """Return the pair's id. A pair that the same interaction already holds is counted as excluded, not doubled.

        `occurrence` tells apart repeated votes that the source means to count each (its row number, say).
        """
        pair_id = content_id(
            self.ledger.source, interaction_id, community, annotator_id, chosen_id, rejected_id, occurrence
        )
        if pair_id in self._pairs:
            self.ledger.excluded["duplicate pairs"] += 1
            return pair_id
        self._pairs.add(
            {
                "pair_id": pair_id,
                "interaction_id": interaction_id,
                "community": community,
                "annotator_id": annotator_id,
                "prompt_id": prompt_id,
                "chosen_id": chosen_id,
                "rejected_id": rejected_id,
                "score_chosen": score_chosen,
                "score_rejected": score_rejected,
                "source": self.ledger.source,
            }
        )
        return pair_id

    def add_option_shares(self, *, community: str, prompt_id: str, shares: Mapping[str, float]) -> None:
        """A community's distribution over a question's options, by response id; brought to a sum of 1."""
        total = sum(shares.values())
        if total > 0:
            self._option_shares += [
                {"community": community, "prompt_id": prompt_id, "response_id": option, "share": share / total}
                for option, share in shares.items()
            ]

    def build(self, *, pair_truth: pa.Table | None = None, response_truth: pa.Table | None = None) -> Dataset:
        """The finished data set; splits and prompt groups come later, in `prepare`."""
        return Dataset(
            responses=self._responses.table(),
            pairs=self._pairs.table(),
            ledger=self.ledger,
            pair_truth=pair_truth,
            response_truth=response_truth,
            option_shares=table(self._option_shares, OPTION_SHARES) if self._option_shares else None,
        )
