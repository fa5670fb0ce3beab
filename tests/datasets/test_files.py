"""Reading files row by row: the rows with their places, and one clear line for everything that can be wrong."""

import gzip
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scpo_ray.datasets.base import RowLedger
from scpo_ray.datasets.files import MalformedRow, SourceRow, looks_local, messages_value, parsed_rows, read_rows
from scpo_ray.errors import DataError

ROWS = [{"a": 1, "b": "é"}, {"a": 2, "b": None}]


def lines_of(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def written(path: Path, content: bytes) -> str:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", lines_of(ROWS)),
        ("rows.jsonl.gz", lines_of(ROWS)),
        ("ROWS.JSONL", b"\xef\xbb\xbf" + lines_of(ROWS)),
        ("rows.json", lines_of(ROWS)),
        ("rows.json", json.dumps(ROWS).encode()),
        ("rows.json", b"\n [\n" + json.dumps(ROWS, indent=1).encode()[1:] + b"\n"),
        ("rows.json.gz", json.dumps(ROWS).encode()),
    ],
)
def test_rows_and_their_places(tmp_path, name, content):
    source = written(tmp_path / name, content)
    assert list(read_rows(source)) == [SourceRow(source, 1, ROWS[0]), SourceRow(source, 2, ROWS[1])]


def test_parquet_rows_come_in_batches_with_record_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("scpo_ray.datasets.files.ROWS_PER_BATCH", 2)
    source = str(tmp_path / "rows.parquet")
    pq.write_table(pa.table({"a": [5, 6, 7], "m": [[{"role": "user", "content": "x"}], [], None]}), source)
    assert [(row.line, row.fields["a"]) for row in read_rows(source)] == [(1, 5), (2, 6), (3, 7)]
    assert next(read_rows(source)).fields["m"] == [{"role": "user", "content": "x"}]


def test_csv_rows_carry_the_line_they_begin_on(tmp_path):
    source = written(tmp_path / "rows.csv", b'a,b\n1,"two\nlines"\n\n3,"say ""x"""\n4\n5,6,7\n8,"9"9\n')
    assert list(read_rows(source)) == [
        SourceRow(source, 2, {"a": "1", "b": "two\nlines"}),
        SourceRow(source, 5, {"a": "3", "b": 'say "x"'}),
        SourceRow(source, 6, {"text": "4"}, fault="1 values for the 2 columns"),
        SourceRow(source, 7, {"text": "5,6,7"}, fault="3 values for the 2 columns"),
        SourceRow(source, 8, {"text": ""}, fault="invalid CSV (',' expected after '\"')"),
    ]


def test_faulty_json_lines_are_rows_with_a_fault(tmp_path):
    content = b'{"a": 1}\n\n{"a": \n[1]\n7\n' + b"[" * 100_000 + b"\n" + b'{"a": ' + b"9" * 5000 + b'}\n{"a": 2}'
    rows = list(read_rows(written(tmp_path / "rows.jsonl", content)))
    assert [row.line for row in rows] == [1, 3, 4, 5, 6, 7, 8]
    assert [row.fault for row in rows[:4]] == [
        None,
        "invalid JSON (Expecting value, column 6)",
        "not a JSON object",
        "not a JSON object",
    ]
    assert all((row.fault or "").startswith("invalid JSON (") for row in rows[4:6])
    assert rows[6] == SourceRow(rows[0].file, 8, {"a": 2})


def test_faulty_items_of_a_json_list(tmp_path):
    source = written(tmp_path / "rows.json", b'[{"a": 1}, 7]')
    assert [(row.line, row.fault) for row in read_rows(source)] == [(1, None), (2, "not a JSON object")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, {"a": ', "rows.json:2: invalid JSON in record 2 (Expecting value"),
        (b'[{"a": 1},]', "rows.json:2: invalid JSON in record 2 (Expecting value"),
        (b'[{"a": 1} {"a": 2}]', "rows.json:1: '{' after record 1, not ',' or ']'; write the list again"),
        (b'[{"a": 1}', "rows.json:1: the end of the file after record 1, not ',' or ']'; write the list again"),
        (b"[]", "rows.json: empty file, not one row; write it again or drop it from the config"),
    ],
)
def test_broken_json_lists(tmp_path, content, message):
    assert message in error_of(written(tmp_path / "rows.json", content))


def error_of(source: str) -> str:
    with pytest.raises(DataError) as caught:
        list(read_rows(source))
    message = str(caught.value)
    assert message.startswith(source)
    assert "\n" not in message, "one line"
    assert ";" in message, "the remedy comes after a semicolon"
    assert str(pickle.loads(pickle.dumps(caught.value))) == message
    return message


def test_a_missing_file_fails_before_any_row_is_read(tmp_path):
    source = str(tmp_path / "pairs.jsonl")
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert str(caught.value) == f"{source}: no such file; check the path (relative paths start at {Path.cwd()})"


def test_folders_and_unknown_formats(tmp_path):
    assert error_of(str(tmp_path)) == f"{tmp_path}: is a folder; name the files in it"
    source = written(tmp_path / "rows.txt", b"x")
    assert error_of(source).startswith(
        f"{source}: the name tells no known format; rename it to one of .jsonl, .jsonl.gz"
    )


def test_truncated_gzip_names_the_line_reached(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    written(path, b"".join(lines_of([{"a": index, "b": str(index**7)}]) for index in range(50_000)))
    path.write_bytes(path.read_bytes()[:-2000])
    numbers: list[int] = []
    with pytest.raises(DataError) as caught:
        numbers.extend(row.fields["a"] for row in read_rows(str(path)))
    num_whole = len(numbers)
    assert numbers == list(range(num_whole))
    assert 40_000 < num_whole < 50_000
    assert str(caught.value) == f"{path}:{num_whole}: truncated gzip after line {num_whole}; copy or download it again"


def test_damaged_gzip(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b'{"a": 1}\n')
    assert "rows.jsonl.gz:0: damaged gzip after line 0 (Not a gzipped file" in error_of(str(path))
    whole = gzip.compress(lines_of(ROWS))
    path.write_bytes(whole[:20] + b"\xff\xff\xff\xff" + whole[24:])
    assert "damaged gzip after line" in error_of(str(path))


def test_not_utf8_names_line_byte_and_column(tmp_path):
    source = written(tmp_path / "rows.jsonl", b'{"a": 1}\n{"b": "caf\xe9"}\n')
    assert error_of(source) == (
        f"{source}:2: not UTF-8 (byte 0xe9 at column 11); convert the file, for example with iconv -t UTF-8"
    )
    source = written(tmp_path / "rows.csv", b"a\ncaf\xe9\n")
    assert error_of(source).startswith(f"{source}:2: not UTF-8 (byte 0xe9 at column 4)")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.csv"])
@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_empty_files(tmp_path, name, content):
    assert ": empty file, not one row; write it again or drop it" in error_of(written(tmp_path / name, content))


def test_empty_and_damaged_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), path)
    assert "empty file, not one row" in error_of(str(path))
    path.write_bytes(b"PAR1 no parquet at all")
    assert "rows.parquet:0: damaged Parquet after record 0 (" in error_of(str(path))


def test_a_csv_without_rows_is_empty(tmp_path):
    assert "empty file" in error_of(written(tmp_path / "rows.csv", b"a,b\n"))


@pytest.mark.parametrize(
    ("source", "is_local"),
    [
        ("HannahRoseKirk/prism-alignment", False),
        ("name", False),
        ("owner/name:train", False),
        ("/data/x", True),
        ("./x", True),
        ("~/x", True),
        ("a/b/c", True),
        ("pairs.jsonl", True),
        ("owner/pairs.parquet", True),
    ],
)
def test_what_looks_like_a_path(source, is_local):
    assert looks_local(source) == is_local


def test_hub_rows_and_splits(monkeypatch):
    calls = []

    def load_dataset(name, subset, split):
        calls.append((name, subset, split))
        return ROWS

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert list(read_rows("owner/name")) == [SourceRow("owner/name", 1, ROWS[0]), SourceRow("owner/name", 2, ROWS[1])]
    assert next(read_rows("owner/name:test", subset="survey")).file == "owner/name/survey"
    assert calls == [("owner/name", None, "train"), ("owner/name", "survey", "test")]


def test_hub_failures_are_data_errors(monkeypatch):
    def load_dataset(name, subset, split):
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        read_rows("owner/name")
    assert str(caught.value) == (
        "owner/name: no such file here, and the hub data set cannot be loaded (Couldn't reach the hub); check the "
        "name, the split, the network and the login, or give a local file"
    )


def test_parsed_rows_send_faults_to_the_ledger():
    ledger = RowLedger("test")
    rows = [
        SourceRow("f", 1, {"a": 1}),
        SourceRow("f", 2, {"text": "{"}, fault="invalid JSON"),
        SourceRow("f", 3, {"a": 3}),
    ]

    def parse(row: SourceRow) -> int:
        if row.fields["a"] == 3:
            raise MalformedRow("three", 3)
        return row.fields["a"]

    assert [parsed for _, parsed in parsed_rows(rows, parse=parse, ledger=ledger)] == [1]
    assert ledger.rows_read == 3
    assert [(row.line, row.reason, row.value) for row in ledger.rejected] == [
        (2, "invalid JSON", "'{'"),
        (3, "three", "3"),
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("text", "m is not a list of messages"),
        ([], "m is not a list of messages"),
        (None, "m is not a list of messages"),
        (["x"], "m: a message's role is none of system, user, assistant"),
        ([{"role": "tool", "content": "x"}], "m: a message's role is none of system, user, assistant"),
        ([{"role": ["user"], "content": "x"}], "m: a message's role is none of system, user, assistant"),
        ([{"role": "user"}], "m: a message is not text"),
        ([{"role": "user", "content": " "}], "m: a message is empty"),
    ],
)
def test_malformed_messages(value, reason):
    with pytest.raises(MalformedRow) as caught:
        messages_value(value, "m")
    assert caught.value.reason == reason


def test_messages_keep_role_and_content_only():
    messages = [{"role": "user", "content": " x ", "name": "n"}]
    assert messages_value(messages, "m") == [{"role": "user", "content": " x "}]
