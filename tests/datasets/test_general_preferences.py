"""General preferences: transcripts become contexts and answers, and what is no transcript is listed."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from scpo_ray.config import GeneralPreferencesConfig
from scpo_ray.datasets import general_preferences
from scpo_ray.datasets.base import Dataset
from scpo_ray.errors import ConfigError, DataError
from scpo_ray.records import Message, content_id, context_id, response_id
from tests.prism_files import write_jsonl

START = "\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: One\nor two?\n\nAssistant:"
CONTEXT: list[Message] = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "One\nor two?"},
]
HEADED = "## Human:\nWhy?\n\n[removed]\n\n## Assistant:\n"
needs_real_data = pytest.mark.skipif(not os.environ.get("SCPO_REAL_DATA"), reason="SCPO_REAL_DATA is not set")


def read(folder: Path, rows: list, *, name: str = "pairs.json", min_score_gap: float = 0.0) -> Dataset:
    path = folder / name
    path.write_text(json.dumps(rows))
    return checked(general_preferences.read(GeneralPreferencesConfig(paths=(str(path),)), min_score_gap=min_score_gap))


def checked(dataset: Dataset) -> Dataset:
    ledger = dataset.ledger
    assert ledger.rows_read == ledger.rows_used + len(ledger.rejected)
    assert dataset.pairs.num_rows == ledger.rows_used - sum(ledger.excluded.values())
    assert ledger.responses == dataset.responses.num_rows
    return dataset


def test_hh_rlhf_rows(tmp_path):
    path = tmp_path / "hh.jsonl"
    write_jsonl(path, [{"chosen": START + " Two.", "rejected": START + " One.\n\nReally."}])
    config = GeneralPreferencesConfig(paths=(str(path),), community="Everyone")
    dataset = checked(general_preferences.read(config, min_score_gap=5))
    interaction_id = content_id("general_preferences", context_id(CONTEXT), "Everyone")
    chosen_id, rejected_id = response_id(CONTEXT, "Two."), response_id(CONTEXT, "One.\n\nReally.")
    assert dataset.pairs.to_pylist() == [
        {
            "pair_id": content_id("general_preferences", interaction_id, "Everyone", None, chosen_id, rejected_id, 0),
            "interaction_id": interaction_id,
            "community": "Everyone",
            "annotator_id": None,
            "prompt_id": context_id(CONTEXT),
            "prompt_group": None,
            "chosen_id": chosen_id,
            "rejected_id": rejected_id,
            "score_chosen": None,
            "score_rejected": None,
            "split": None,
            "source": "general_preferences",
        }
    ]
    assert dataset.responses["context"].to_pylist() == [CONTEXT, CONTEXT]


def test_dsp_rows_are_ordered_by_score(tmp_path):
    rows = [
        {"text": [START + " One.", START + " Two."], "score": [0.5, 1.5]},
        {"text": [HEADED + " a\n## no header", HEADED + "b"], "score": [1, 0]},
    ]
    dataset = read(tmp_path, rows)
    question: list[Message] = [{"role": "user", "content": "Why?\n\n[removed]"}]
    assert [(row["context"], row["response"]) for row in dataset.responses.to_pylist()] == [
        (CONTEXT, "Two."),
        (CONTEXT, "One."),
        (question, "a\n## no header"),
        (question, "b"),
    ]
    assert [(row["score_chosen"], row["score_rejected"]) for row in dataset.pairs.to_pylist()] == [(1.5, 0.5), (1, 0)]
    assert dataset.pairs["chosen_id"].to_pylist() == [
        response_id(CONTEXT, "Two."),
        response_id(question, "a\n## no header"),
    ]


def test_two_messages_in_a_row_by_one_speaker_are_one(tmp_path):
    start = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d\n\nHuman: e\n\nAssistant: "
    dataset = read(tmp_path, [{"chosen": start + "1", "rejected": start + "2"}])
    assert dataset.responses["context"].to_pylist()[0] == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c\n\nd"},
        {"role": "user", "content": "e"},
    ]


def test_ties_and_repeats_are_excluded(tmp_path):
    rows = [{"text": [START + "1", START + "2"], "score": [gap, 0]} for gap in (0, 0.5, 1, 1)]
    dataset = read(tmp_path, rows)
    assert dict(dataset.ledger.excluded) == {"tied pairs": 1, "duplicate pairs": 2}
    assert dict(read(tmp_path, rows, min_score_gap=0.5).ledger.excluded) == {"tied pairs": 2, "duplicate pairs": 1}


GOOD = START + " Two."
MALFORMED = [
    ({"chosen": GOOD}, "no rejected", "['chosen']"),
    ({"prompt": "x"}, "no chosen", "['prompt']"),
    ({"chosen": GOOD, "rejected": 3}, "rejected is not text", "3"),
    ({"chosen": GOOD, "rejected": GOOD}, "both answers are the same", "'Two.'"),
    ({"chosen": GOOD, "rejected": "Hello"}, "the transcript does not begin with a speaker", "'Hello'"),
    ({"chosen": "Hello" + GOOD, "rejected": GOOD}, "the transcript does not begin with a speaker", None),
    ({"chosen": GOOD, "rejected": START}, "the last answer is empty", "''"),
    ({"chosen": GOOD, "rejected": GOOD + "\n\nHuman: so?"}, "the transcript does not end with an answer", None),
    ({"chosen": "\n\nAssistant: Two.", "rejected": GOOD}, "the last answer follows no question", None),
    ({"chosen": GOOD + "\n\nAssistant: x", "rejected": GOOD}, "the last answer follows no question", None),
    ({"chosen": "\n\nHuman: \n\nAssistant: x", "rejected": GOOD}, "a message is empty", "' '"),
    (
        {"chosen": GOOD, "rejected": GOOD.replace("One", "Three") + "x"},
        "the two transcripts differ before the last answer",
        None,
    ),
    ({"text": [GOOD], "score": [1, 0]}, "text is not a list of two", None),
    ({"text": [GOOD, START + "x"]}, "no score", "['text']"),
    ({"text": [GOOD, START + "x"], "score": [1]}, "score is not a list of two", "[1]"),
    ({"text": [GOOD, START + "x"], "score": [1, None]}, "score is not a number", "None"),
    ({"text": [GOOD, None], "score": [1, 0]}, "text is not text", "None"),
    (7, "not a JSON object", "7"),
]


@pytest.mark.parametrize(("row", "reason", "value"), MALFORMED)
def test_malformed_rows_are_listed_with_their_place(tmp_path, row, reason, value):
    dataset = read(tmp_path, [{"chosen": GOOD, "rejected": START + "x"}, row])
    (rejected,) = dataset.ledger.rejected
    assert (rejected.source, rejected.file, rejected.line) == ("general_preferences", str(tmp_path / "pairs.json"), 2)
    assert rejected.reason == reason
    assert value is None or rejected.value == value
    assert dataset.pairs.num_rows == 1


def test_no_paths_and_missing_files(tmp_path):
    with pytest.raises(ConfigError, match=r"prepare.general_preferences.paths: no path given; name at least one"):
        general_preferences.read(GeneralPreferencesConfig(), min_score_gap=0)
    with pytest.raises(DataError, match=r"x.json: no such file; check the path"):
        general_preferences.read(GeneralPreferencesConfig(paths=(str(tmp_path / "x.json"),)), min_score_gap=0)


@needs_real_data
def test_real_files_add_up():
    folder = Path(os.environ["SCPO_REAL_DATA"]) / "general_preferences"
    paths = (str(folder / "helpful.test.json"), str(folder / "webgpt.test.json"))
    dataset = checked(general_preferences.read(GeneralPreferencesConfig(paths=paths), min_score_gap=0))
    dataset.ledger.check(0.05)
    assert dataset.ledger.rows_read == 2352 + 901
    assert Counter(row.reason for row in dataset.ledger.rejected) == {
        "the last answer follows no question": 9,
        "the last answer is empty": 3,
        "a message is empty": 1,
    }
    assert dict(dataset.ledger.excluded) == {"tied pairs": 245}
    assert (dataset.pairs.num_rows, dataset.responses.num_rows) == (2995, 5990)
    assert all(context[-1]["role"] == "user" for context in dataset.responses["context"].to_pylist())
