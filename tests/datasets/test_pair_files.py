"""Pair files: exact pairs from every form of row, and every way in which a row is malformed."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scpo_ray.config import PairFilesConfig
from scpo_ray.datasets import pair_files
from scpo_ray.datasets.base import Dataset
from scpo_ray.errors import ConfigError, DataError
from scpo_ray.records import Message, content_id, context_id, response_id
from tests.prism_files import write_jsonl

QUESTION: list[Message] = [{"role": "user", "content": "q"}]
ROW = {"prompt": "q", "chosen": "good", "rejected": "bad", "community": "Chile", "annotator_id": "u1"}
needs_real_data = pytest.mark.skipif(not os.environ.get("SCPO_REAL_DATA"), reason="SCPO_REAL_DATA is not set")


def read(folder: Path, rows: list[dict], *, min_score_gap: float = 0.0) -> Dataset:
    path = folder / "pairs.jsonl"
    write_jsonl(path, rows)
    return checked(pair_files.read(PairFilesConfig(paths=(str(path),)), min_score_gap=min_score_gap))


def checked(dataset: Dataset) -> Dataset:
    ledger = dataset.ledger
    assert ledger.rows_read == ledger.rows_used + len(ledger.rejected)
    assert dataset.pairs.num_rows == ledger.rows_used - sum(ledger.excluded.values())
    assert ledger.responses_mentioned == 2 * (ledger.rows_used - ledger.excluded["tied pairs"])
    assert ledger.responses == dataset.responses.num_rows
    return dataset


def test_a_row_becomes_two_responses_and_a_pair(tmp_path):
    dataset = read(tmp_path, [ROW | {"score_chosen": 3, "score_rejected": 1.5, "chosen_id": "x", "rejected_id": "y"}])
    interaction_id = content_id("pair_files", context_id(QUESTION), "Chile", "u1")
    chosen_id, rejected_id = response_id(QUESTION, "good"), response_id(QUESTION, "bad")
    assert dataset.pairs.to_pylist() == [
        {
            "pair_id": content_id("pair_files", interaction_id, "Chile", "u1", chosen_id, rejected_id, 0),
            "interaction_id": interaction_id,
            "community": "Chile",
            "annotator_id": "u1",
            "prompt_id": context_id(QUESTION),
            "prompt_group": None,
            "chosen_id": chosen_id,
            "rejected_id": rejected_id,
            "score_chosen": 3.0,
            "score_rejected": 1.5,
            "split": None,
            "source": "pair_files",
        }
    ]
    assert dataset.responses.to_pylist() == [
        {
            "response_id": identifier,
            "interaction_id": interaction_id,
            "context": QUESTION,
            "response": text,
            "prompt_id": context_id(QUESTION),
        }
        for identifier, text in ((chosen_id, "good"), (rejected_id, "bad"))
    ]


def test_an_interaction_is_a_context_a_community_and_an_annotator(tmp_path):
    rows = [
        ROW,
        ROW | {"rejected": "worse"},
        ROW | {"annotator_id": "u2"},
        ROW | {"community": "Peru"},
        ROW | {"prompt": "r"},
        ROW | {"annotator_id": None},
        ROW | {"annotator_id": 7},
    ]
    dataset = read(tmp_path, rows)
    pairs = dataset.pairs.to_pylist()
    assert Counter(Counter(pair["interaction_id"] for pair in pairs).values()) == {2: 1, 1: 5}
    assert [pair["annotator_id"] for pair in pairs] == ["u1", "u1", "u2", "u1", "u1", None, "7"]
    assert dataset.responses["response"].to_pylist() == ["good", "bad", "worse", "good", "bad"]
    assert dataset.ledger.merged_duplicates == 9


CONVERSATION = [{"role": "system", "content": "s"}, *QUESTION]


def answer(text: str) -> dict:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("texts", "context"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, QUESTION),
        ({"messages": CONVERSATION, "chosen": "good", "rejected": "bad"}, CONVERSATION),
        ({"prompt": CONVERSATION, "chosen": [answer("good")], "rejected": [answer("bad")]}, CONVERSATION),
        ({"chosen": [*CONVERSATION, answer("good")], "rejected": [*CONVERSATION, answer("bad")]}, CONVERSATION),
        ({"prompt": "q", "chosen": [*QUESTION, answer("good")], "rejected": [*QUESTION, answer("bad")]}, QUESTION),
        ({"prompt": None, "messages": QUESTION, "chosen": "good", "rejected": "bad"}, QUESTION),
    ],
)
def test_every_form_of_context(tmp_path, texts, context):
    dataset = read(tmp_path, [texts | {"community": "Chile"}])
    assert [(row["context"], row["response"]) for row in dataset.responses.to_pylist()] == [
        (context, "good"),
        (context, "bad"),
    ]


def test_the_sources_prompt_id_is_kept(tmp_path):
    dataset = read(tmp_path, [ROW | {"prompt_id": "p1"}])
    assert dataset.pairs["prompt_id"].to_pylist() == ["p1"]
    assert dataset.responses["prompt_id"].to_pylist() == ["p1", "p1"]


def test_repeated_votes_count_once_per_annotator_and_each_without(tmp_path):
    anonymous = ROW | {"annotator_id": None}
    reversed_vote = ROW | {"chosen": "bad", "rejected": "good"}
    dataset = read(tmp_path, [ROW, ROW, reversed_vote, anonymous, anonymous, anonymous])
    assert Counter(dataset.pairs["annotator_id"].to_pylist()) == {"u1": 2, None: 3}
    assert len(set(dataset.pairs["pair_id"].to_pylist())) == 5
    assert dict(dataset.ledger.excluded) == {"duplicate pairs": 1}


def test_ties_are_excluded(tmp_path):
    rows = [ROW | {"annotator_id": str(gap), "score_chosen": gap, "score_rejected": 0} for gap in (0, 1, 2, 3)]
    dataset = read(tmp_path, rows, min_score_gap=1)
    assert dataset.pairs["score_chosen"].to_pylist() == [2, 3]
    assert dict(dataset.ledger.excluded) == {"tied pairs": 2}
    assert dict(read(tmp_path, rows).ledger.excluded) == {"tied pairs": 1}


MALFORMED = [
    ({"prompt": None}, "no prompt and no messages", None),
    ({"prompt": " "}, "prompt is empty", "' '"),
    ({"prompt": 7}, "prompt is not a list of messages", "7"),
    ({"messages": QUESTION}, "both prompt and messages are given", "'q'"),
    ({"prompt": None, "messages": [answer("a")]}, "the context ends with the assistant's message", "'a'"),
    ({"prompt": None, "messages": "q"}, "messages is not a list of messages", "'q'"),
    ({"chosen": None}, "no chosen", None),
    ({"rejected": ""}, "rejected is empty", "''"),
    ({"chosen": 3}, "chosen is not a list of messages", "3"),
    ({"chosen": "\ud800"}, "chosen holds half a surrogate pair", "'\\ud800'"),
    ({"chosen": QUESTION}, "chosen does not end with the assistant's message", None),
    (
        {"chosen": [{"role": "user", "content": "z"}, answer("good")]},
        "the contexts of prompt, chosen and rejected differ",
        None,
    ),
    ({"rejected": "good"}, "chosen and rejected are the same", "'good'"),
    ({"community": None}, "no community", None),
    ({"community": " "}, "community is empty", "' '"),
    ({"annotator_id": 1.5}, "annotator_id is not text", "1.5"),
    ({"annotator_id": True}, "annotator_id is not text", "True"),
    ({"score_chosen": 1}, "only one of score_chosen and score_rejected is given", "(1, None)"),
    ({"score_chosen": 1, "score_rejected": 2}, "score_chosen is below score_rejected", "(1, 2)"),
    ({"score_chosen": float("nan"), "score_rejected": 2}, "score_chosen is not finite", "nan"),
    ({"score_chosen": 1, "score_rejected": "0"}, "score_rejected is not a number", "'0'"),
]


@pytest.mark.parametrize(("change", "reason", "value"), MALFORMED)
def test_malformed_rows_are_listed_with_their_place(tmp_path, change, reason, value):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (ROW, ROW | change, ROW | {"prompt": "r"})))
    dataset = checked(pair_files.read(PairFilesConfig(paths=(str(path),)), min_score_gap=0))
    (rejected,) = dataset.ledger.rejected
    assert (rejected.source, rejected.file, rejected.line) == ("pair_files", str(path), 2)
    assert rejected.reason == reason
    assert value is None or rejected.value == value
    assert dataset.pairs.num_rows == 2


def test_an_invalid_json_line_is_a_malformed_row(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROW) + "\n{oops\n")
    (rejected,) = pair_files.read(PairFilesConfig(paths=(str(path),)), min_score_gap=0).ledger.rejected
    assert (rejected.line, rejected.value) == (2, "'{oops'")
    assert rejected.reason.startswith("invalid JSON (")


def test_unknown_columns_name_the_nearest(tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, [ROW, ROW | {"comunity": "Peru"}])
    assert str(caught.value) == (
        f"{tmp_path}/pairs.jsonl:2: unknown column 'comunity'; did you mean 'community'? known are prompt, messages, "
        "chosen, rejected, community, annotator_id, prompt_id, score_chosen, score_rejected; rename or drop it"
    )
    with pytest.raises(DataError, match="unknown column 'zzz'; known are prompt, messages"):
        read(tmp_path, [ROW | {"zzz": 1}])


def test_no_paths_and_missing_files(tmp_path):
    with pytest.raises(ConfigError, match=r"prepare.pair_files.paths: no path given; name at least one"):
        pair_files.read(PairFilesConfig(), min_score_gap=0)
    missing = str(tmp_path / "pairs.jsonl")
    with pytest.raises(DataError, match=r"pairs.jsonl: no such file; check the path"):
        pair_files.read(PairFilesConfig(paths=(missing,)), min_score_gap=0)


def test_all_formats_give_the_same_data_set(tmp_path, monkeypatch):
    rows = [
        ROW | {"annotator_id": f"u{index}", "score_chosen": index + 1.0, "score_rejected": 0.0} for index in range(5)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress((tmp_path / "pairs.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    monkeypatch.setattr("datasets.load_dataset", lambda name, subset, split: rows if split == "validation" else [])
    sources = [str(tmp_path / name) for name in ("pairs.jsonl", "pairs.jsonl.gz", "pairs.parquet")]
    datasets = [
        checked(pair_files.read(PairFilesConfig(paths=(source,)), min_score_gap=0))
        for source in (*sources, "owner/pairs:validation")
    ]
    assert datasets[0].pairs.num_rows == 5
    assert all(dataset.pairs == datasets[0].pairs for dataset in datasets)
    assert all(dataset.responses == datasets[0].responses for dataset in datasets)
    together = checked(pair_files.read(PairFilesConfig(paths=tuple(sources)), min_score_gap=0))
    assert (together.pairs.num_rows, together.ledger.excluded["duplicate pairs"]) == (5, 10)


def test_parquet_message_lists(tmp_path):
    rows = [{"messages": QUESTION, "chosen": [answer("good")], "rejected": [answer("bad")], "community": "Chile"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    dataset = checked(pair_files.read(PairFilesConfig(paths=(str(tmp_path / "pairs.parquet"),)), min_score_gap=0))
    assert dataset.responses["context"].to_pylist() == [QUESTION, QUESTION]


@needs_real_data
def test_real_votes_add_up():
    folder = Path(os.environ["SCPO_REAL_DATA"])
    names = (
        "global_dialogues/united_kingdom.jsonl.gz",
        "global_dialogues/world.jsonl.gz",
        "polarized_issues_us/united_states.jsonl.gz",
    )
    dataset = checked(
        pair_files.read(PairFilesConfig(paths=tuple(str(folder / name) for name in names)), min_score_gap=0)
    )
    dataset.ledger.check(0)
    assert dataset.ledger.rows_read == 14_294 + 14_188 + 16_771
    assert dict(dataset.ledger.excluded) == {"duplicate pairs": 9}
    assert Counter(dataset.pairs["community"].to_pylist()) == {
        "United Kingdom": 14_293,
        "World": 14_187,
        "United States": 16_764,
    }
    assert dataset.responses.num_rows == 8825
