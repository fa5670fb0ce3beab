"""Source rows from JSONL, JSON, CSV and Parquet files and from the hub, each with the place where it stands.

A row that cannot be read is yielded with its fault, for the ledger; a file that cannot be read raises DataError.
"""

import csv
import gzip
import io
import itertools
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from scpo_ray.datasets.base import RowLedger
from scpo_ray.errors import DataError
from scpo_ray.records import Message

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
ROLES = ("system", "user", "assistant")
ROWS_PER_BATCH = 1024
HALF_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell it, UTF-8 and Arrow cannot store it

Parsed = TypeVar("Parsed")


class MalformedRow(Exception):
    """One row is no use: caught by `parsed_rows` and entered in the ledger, never seen by callers."""

    def __init__(self, reason: str, value: object) -> None:
        super().__init__(reason, value)
        self.reason = reason
        self.value = value


@dataclass(slots=True)
class SourceRow:
    """One row and its place. `line` counts lines in JSONL and CSV; records in JSON lists, Parquet and on the hub."""

    file: str
    line: int
    fields: dict[str, Any]
    fault: str | None = None
    """Why the row could not be read; `fields` then holds the raw text under `text`."""


def read_rows(source: str, *, subset: str | None = None) -> Iterator[SourceRow]:
    """Rows of a local file or of a hub data set (`name` or `name:split`; `subset` is the hub's configuration name).

    The place is checked at once, the rows are read one by one.

    Raises:
        DataError: no such file, a folder, an unknown format, an unreadable file, or no rows at all.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(f"{source}: is a folder; name the files in it")
    if path.is_file():
        return _not_empty(source, _reader(source)(path, source))
    if looks_local(source):
        raise DataError(f"{source}: no such file; check the path (relative paths start at {Path.cwd()})")
    return _not_empty(source, _read_hub(source, subset))


def looks_local(source: str) -> bool:
    """Whether a name that does not exist here was meant as a path: hub names are `name` or `owner/name`."""
    return source.startswith(("/", ".", "~")) or source.count("/") > 1 or source.lower().endswith(SUFFIXES)


def parsed_rows(
    rows: Iterable[SourceRow], *, parse: Callable[[SourceRow], Parsed], ledger: RowLedger
) -> Iterator[tuple[SourceRow, Parsed]]:
    """Each row with what `parse` made of it; malformed ones go to the ledger. Counts `rows_read`, not `rows_used`."""
    for row in rows:
        ledger.rows_read += 1
        if row.fault:
            ledger.reject(file=row.file, line=row.line, reason=row.fault, value=row.fields["text"])
            continue
        try:
            parsed = parse(row)
        except MalformedRow as malformed:
            ledger.reject(file=row.file, line=row.line, reason=malformed.reason, value=malformed.value)
            continue
        yield row, parsed


def required(fields: Mapping[str, Any], name: str) -> Any:
    """The column's value; a missing or null one makes the row malformed."""
    if fields.get(name) is None:
        raise MalformedRow(f"no {name}", sorted(map(str, fields)))
    return fields[name]


def text_value(value: object, name: str) -> str:
    """The value as it is, where it is text that is not blank and can be stored as UTF-8."""
    if not isinstance(value, str):
        raise MalformedRow(f"{name} is not text", value)
    if not value.strip():
        raise MalformedRow(f"{name} is empty", value)
    if not value.isascii() and HALF_SURROGATE.search(value):
        raise MalformedRow(f"{name} holds half a surrogate pair", value)
    return value


def number_value(value: object, name: str) -> float:
    """The value as a finite float; text and booleans are no numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MalformedRow(f"{name} is not a number", value)
    try:
        number = float(value)
    except OverflowError:
        raise MalformedRow(f"{name} is not finite", value) from None
    if not math.isfinite(number):
        raise MalformedRow(f"{name} is not finite", value)
    return number


def messages_value(value: object, name: str) -> list[Message]:
    """The value as messages of role and content; other keys of a message are dropped."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise MalformedRow(f"{name} is not a list of messages", value)
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise MalformedRow(f"{name}: a message's role is none of {', '.join(ROLES)}", message)
        messages.append({"role": message["role"], "content": text_value(message.get("content"), f"{name}: a message")})
    return messages


def _not_empty(source: str, rows: Iterator[SourceRow]) -> Iterator[SourceRow]:
    is_empty = True
    for row in rows:
        is_empty = False
        yield row
    if is_empty:
        raise DataError(f"{source}: empty file, not one row; write it again or drop it from the config")


def _reader(source: str) -> Callable[[Path, str], Iterator[SourceRow]]:
    name = source.lower().removesuffix(".gz")
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    for suffix, reader in readers.items():
        if name.endswith(suffix) and source.lower().endswith(SUFFIXES):
            return reader
    raise DataError(f"{source}: the name tells no known format; rename it to one of {', '.join(SUFFIXES)}")


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb")


def _lines(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, with their line ends; faults of the file become DataErrors at the line reached."""
    line = 0
    try:
        with _open(path) as handle:
            for line, raw in enumerate(handle, start=1):
                yield line, raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{source}:{line}: not UTF-8 (byte {byte:#04x} at column {error.start + 1}); convert the file, "
            "for example with iconv -t UTF-8"
        ) from error
    except EOFError as error:
        raise DataError(f"{source}:{line}: truncated gzip after line {line}; copy or download it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{source}:{line}: damaged gzip after line {line} ({error}); copy or download it again, or rename it if it "
            "is not compressed"
        ) from error
    except OSError as error:
        raise DataError(f"{source}:{line}: cannot be read ({error.strerror}); check permissions and disk") from error


def _json_row(source: str, line: int, text: str) -> SourceRow:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return SourceRow(
            source, line, {"text": text.strip()}, fault=f"invalid JSON ({error.msg}, column {error.colno})"
        )
    except (RecursionError, ValueError) as error:  # nested too deep; an integer of thousands of digits
        return SourceRow(source, line, {"text": text.strip()}, fault=f"invalid JSON ({error})")
    return _object_row(source, line, value)


def _object_row(source: str, line: int, value: object) -> SourceRow:
    if not isinstance(value, dict):
        return SourceRow(source, line, {"text": value}, fault="not a JSON object")
    return SourceRow(source, line, value)


def _read_jsonl(path: Path, source: str) -> Iterator[SourceRow]:
    for line, text in _lines(path, source):
        if text.strip():
            yield _json_row(source, line, text.rstrip())


def _read_json(path: Path, source: str) -> Iterator[SourceRow]:
    """One list of objects, or JSON lines under the suffix that the hub often gives them."""
    lines = ((line, text) for line, text in _lines(path, source) if text.strip())
    line, first = next(lines, (0, ""))
    if first.lstrip().startswith("["):
        yield from _read_json_list(first + "".join(text for _, text in lines), source)
        return
    if first:
        yield _json_row(source, line, first.rstrip())
    for line, text in lines:
        yield _json_row(source, line, text.rstrip())


def _read_json_list(text: str, source: str) -> Iterator[SourceRow]:
    """The list's items, decoded one at a time so that only the text and one item are held."""
    decoder = json.JSONDecoder()
    position = _skip_blanks(text, text.index("[") + 1)
    if text[position : position + 1] == "]":
        return
    for record in itertools.count(1):
        try:
            value, position = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError, ValueError) as error:
            raise DataError(
                f"{source}:{record}: invalid JSON in record {record} ({error}); the list is damaged, write it again"
            ) from error
        yield _object_row(source, record, value)
        position = _skip_blanks(text, position)
        separator = text[position : position + 1]
        if separator == "]":
            return
        if separator != ",":
            found = repr(separator) if separator else "the end of the file"
            raise DataError(f"{source}:{record}: {found} after record {record}, not ',' or ']'; write the list again")
        position = _skip_blanks(text, position + 1)


def _skip_blanks(text: str, position: int) -> int:
    while text[position : position + 1].isspace():
        position += 1
    return position


def _read_csv(path: Path, source: str) -> Iterator[SourceRow]:
    reader = csv.reader((text for _, text in _lines(path, source)), strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{source}:1: unreadable header ({error}); write it as comma-separated names") from error
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield SourceRow(source, line, {"text": ""}, fault=f"invalid CSV ({error})")
            continue
        if not values:  # a blank line
            continue
        if len(values) == len(header):
            yield SourceRow(source, line, dict(zip(header, values, strict=True)))
        else:
            fault = f"{len(values)} values for the {len(header)} columns"
            yield SourceRow(source, line, {"text": ",".join(values)}, fault=fault)


def _read_parquet(path: Path, source: str) -> Iterator[SourceRow]:
    record = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
                for fields in batch.to_pylist():
                    record += 1
                    yield SourceRow(source, record, fields)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{source}:{record}: damaged Parquet after record {record} ({reason}); write it again"
        ) from error


def _read_hub(source: str, subset: str | None) -> Iterator[SourceRow]:
    name, _, split = source.partition(":")
    try:
        from datasets import load_dataset  # deferred: slow to import, and local files do without
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise DataError(
            f"{source}: the hub needs the datasets package ({error}); install it or give a local file"
        ) from error
    try:
        table = load_dataset(name, subset, split=split or "train")
    except (DatasetsError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{source}: no such file here, and the hub data set cannot be loaded ({reason}); check the name, the "
            "split, the network and the login, or give a local file"
        ) from error
    place = f"{name}/{subset}" if subset else name
    return (SourceRow(place, record, dict(fields)) for record, fields in enumerate(table, start=1))
