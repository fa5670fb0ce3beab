"""GlobalOpinionQA: exact shares and pairs, what is no opinion, merged samples, and rows that deserve a look."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from scpo_ray.config import GlobalOpinionsConfig
from scpo_ray.datasets import global_opinions
from scpo_ray.datasets.base import Dataset
from scpo_ray.errors import DataError
from scpo_ray.records import Message, content_id, context_id, response_id

needs_real_data = pytest.mark.skipif(not os.environ.get("SCPO_REAL_DATA"), reason="SCPO_REAL_DATA is not set")


def row(options: object, selections: object, *, question: str = "Is it so?") -> dict[str, str]:
    printed = selections if isinstance(selections, str) else f"defaultdict(<class 'list'>, {selections!r})"
    return {"question": question, "selections": printed, "options": str(options), "source": "GAS/WVS"}


GOOD = row(["Yes", "No"], {"Peru": [0.7, 0.3]}, question="Is this row good?")


def read(
    folder: Path, rows: list[dict[str, str]], *, min_share_gap: float = 0.1, min_score_gap: float = 0.0
) -> Dataset:
    path = folder / "opinions.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ["question", "selections", "options", "source"])
        writer.writeheader()
        writer.writerows(rows)
    config = GlobalOpinionsConfig(path=str(path), min_share_gap=min_share_gap)
    dataset = global_opinions.read(config, min_score_gap=min_score_gap)
    assert dataset.ledger.rows_read == dataset.ledger.rows_used + len(dataset.ledger.rejected) == len(rows)
    assert dataset.ledger.responses == dataset.responses.num_rows
    return dataset


def pairs_by_text(dataset: Dataset) -> list[tuple[str, str, str, float, float]]:
    texts = {response["response_id"]: response["response"] for response in dataset.responses.to_pylist()}
    return [
        (
            pair["community"],
            texts[pair["chosen_id"]],
            texts[pair["rejected_id"]],
            round(pair["score_chosen"], 9),
            round(pair["score_rejected"], 9),
        )
        for pair in dataset.pairs.to_pylist()
    ]


def test_pairs_ids_and_contexts(tmp_path):
    dataset = read(tmp_path, [row(["Yes", "No"], {"Peru": [0.75, 0.25], "Mali": [0.25, 0.75]})])
    context: list[Message] = [{"role": "user", "content": "Is it so?"}]
    yes, no = response_id(context, "Yes"), response_id(context, "No")
    peru, mali = (content_id("global_opinions", "Is it so?", country) for country in ("Peru", "Mali"))
    assert dataset.responses.to_pylist() == [
        {
            "response_id": identifier,
            "interaction_id": peru,
            "context": context,
            "response": text,
            "prompt_id": context_id(context),
        }
        for identifier, text in ((yes, "Yes"), (no, "No"))
    ]
    assert dataset.pairs.to_pylist() == [
        {
            "pair_id": content_id("global_opinions", interaction_id, country, None, chosen_id, rejected_id, 0),
            "interaction_id": interaction_id,
            "community": country,
            "annotator_id": None,
            "prompt_id": context_id(context),
            "prompt_group": None,
            "chosen_id": chosen_id,
            "rejected_id": rejected_id,
            "score_chosen": 0.75,
            "score_rejected": 0.25,
            "split": None,
            "source": "global_opinions",
        }
        for country, interaction_id, chosen_id, rejected_id in (("Peru", peru, yes, no), ("Mali", mali, no, yes))
    ]


def test_gaps_at_the_thresholds(tmp_path):
    rows = [row(["a", "b", "c"], {"Peru": [0.4, 0.3, 0.3]})]
    dataset = read(tmp_path, rows)  # 0.4 - 0.3 is 0.10000000000000003, and 0.3 - 0.2 below 0.1
    assert pairs_by_text(dataset) == [("Peru", "a", "b", 0.4, 0.3), ("Peru", "a", "c", 0.4, 0.3)]
    assert dict(dataset.ledger.excluded) == {"tied pairs": 1}
    rows = [row(["a", "b", "c"], {"Peru": [0.3, 0.2, 0.5]})]
    assert len(pairs_by_text(read(tmp_path, rows))) == 3
    dataset = read(tmp_path, rows, min_share_gap=0.2)
    assert [pair[1:3] for pair in pairs_by_text(dataset)] == [("c", "a"), ("c", "b")]
    assert dict(dataset.ledger.excluded) == {"pairs below min_share_gap": 1}
    dataset = read(tmp_path, rows, min_score_gap=0.2)
    assert [pair[1:3] for pair in pairs_by_text(dataset)] == [("c", "b")]
    assert dict(dataset.ledger.excluded) == {"tied pairs": 2}


def test_shares_are_of_those_with_an_opinion(tmp_path):
    dataset = read(tmp_path, [row(["Yes", "No", "Both (VOL)", "DK/Refused"], {"Peru": [0.4, 0.2, 0.2, 0.2]})])
    assert pairs_by_text(dataset) == [("Peru", "Yes", "No", 0.5, 0.25)]
    assert dataset.responses["response"].to_pylist() == ["Yes", "No"]
    assert dict(dataset.ledger.excluded) == {
        "options that are no opinion": 1,
        "options that were not offered, or bare numbers": 1,
    }


NO_OPINIONS = (
    "DK/Refused", "Don't know", "Don’t know/Refused", "No answer", "No answer/refused", "Missing", "Missing; Unknown",
    "Other missing; Multiple answers Mail (EVS)", "Not asked", "Not applicable", "INAP: No internet/no social media",
    "Refused", "Total                  N=", "Never heard of", "Haven't heard enough (VOL)",
)  # fmt: skip
NOT_OFFERED = (
    "Neither (VOL)", "Same (VOL.)", "Both/Neither (Vol.)", "Other (volunteered)", "Both (DO NOT READ)", "Others",
    "No difference [ONLY IF VOLUNTEERED]", "It is against democracy (spontaneous)", "Other", "Other answer",
    7.0, "9", "90+",
)  # fmt: skip
OPINIONS = (
    "No", "None at all", "Not important at all", "Don't belong", "Don't mind", "Other reasons", "Neither",
    "Hard to say", "They refused to pay", "Nothing", "Voluntary work", "Two or 3", "Not mentioned", "No change",
    "(Survey country) should make decisions",
)  # fmt: skip


def test_what_counts_as_an_opinion(tmp_path):
    options = [*NO_OPINIONS, *NOT_OFFERED, *OPINIONS]
    dataset = read(tmp_path, [row(options, {"Peru": [1 / len(options)] * len(options)})])
    assert dataset.responses["response"].to_pylist() == list(OPINIONS)
    assert dataset.ledger.excluded["options that are no opinion"] == len(NO_OPINIONS)
    assert dataset.ledger.excluded["options that were not offered, or bare numbers"] == len(NOT_OFFERED)


def test_samples_of_one_country_are_averaged(tmp_path):
    selections = {
        "India (Current national sample)": [0.9, 0.1],
        "Mali": [0.6, 0.4],
        "India (Old national sample)": [0.6, 0.4],
        "India (Non-national sample)": [0.3, 0.7],
        "Pakistan (Non-national sample)": [0.2, 0.8],
    }
    dataset = read(tmp_path, [row(["a", "b"], selections)])
    assert pairs_by_text(dataset) == [
        ("India", "a", "b", 0.6, 0.4),
        ("Mali", "a", "b", 0.6, 0.4),
        ("Pakistan", "b", "a", 0.8, 0.2),
    ]
    assert dict(dataset.ledger.excluded) == {"samples averaged into another of their country": 2}


def test_countries_have_one_name(tmp_path):
    names = ["Britain", "S. Africa", "South Korea", "Czech Rep.", "Taiwan ROC", "S. Africa (Non-national sample)"]
    dataset = read(tmp_path, [row(["a", "b"], {name: [0.75, 0.25] for name in names})])
    assert dataset.pairs["community"].to_pylist() == [
        "United Kingdom",
        "South Africa",
        "South Korea",
        "Czechia",
        "Taiwan",
    ]


def test_options_with_equal_texts_add_up(tmp_path):
    dataset = read(tmp_path, [row(["a", "b", "a "], {"Peru": [0.25, 0.375, 0.375]})])
    assert pairs_by_text(dataset) == [("Peru", "a", "b", 0.625, 0.375)]


def test_distributions_that_do_not_fit_are_left_out_and_listed(tmp_path):
    selections = {"Peru": [0.7, 0.3], "Mali": [0.5, 0.3, 0.2], "Iran": [1.5, -0.5], "Iraq": "none", "Chile": [0.7, "x"]}
    dataset = read(tmp_path, [row(["a", "b"], selections)])
    assert pairs_by_text(dataset) == [("Peru", "a", "b", 0.7, 0.3)]
    assert dict(dataset.ledger.excluded) == {"distributions that do not fit the options": 4}
    assert [(found.line, found.reason, found.value) for found in dataset.ledger.suspicious] == [
        (2, "3 shares for 2 options", "'Mali'"),
        (2, "a share is outside 0-1", "'Iran'"),
        (2, "0 shares for 2 options", "'Iraq'"),
        (2, "a share is not a number", "'Chile'"),
    ]


def test_rows_that_deserve_a_look_are_used_and_listed(tmp_path):
    favour_congress = "Do you favor the Indian National Congess (INC)?"
    rows = [
        row(["a", "b"], {"Peru": [0.6, 0.2], "Mali": [0.6, 0.395]}),
        row(["a", "b"], {"India (Old national sample)": [0.7, 0.3], "S. Korea": [0.8, 0.2]}, question=favour_congress),
        row(["a", "b"], {"Chile": [0.2, 0.8]}),
    ]
    dataset = read(tmp_path, rows)
    assert pairs_by_text(dataset)[0] == ("Peru", "a", "b", 0.75, 0.25)
    assert dataset.pairs.num_rows == 5
    assert [(found.line, found.reason, found.value) for found in dataset.ledger.suspicious] == [
        (2, "the shares sum to 0.800", "'Peru'"),
        (3, "a question about India only, attributed to another country", "'S. Korea'"),
        (4, "the question repeats that of line 2", "'Is it so?'"),
    ]
    assert (dataset.ledger.responses_mentioned, dataset.ledger.merged_duplicates) == (6, 2)


def test_questions_without_two_answers_or_without_opinions(tmp_path):
    rows = [
        row(["Yes", "Other (VOL)"], {"Peru": [0.7, 0.3]}),
        row(["a", "b", "DK/Refused"], {"Peru": [0, 0, 1], "Mali": [1, 0, 0]}, question="?"),
    ]
    dataset = read(tmp_path, rows)
    assert pairs_by_text(dataset) == [("Mali", "a", "b", 1, 0)]
    assert dataset.ledger.excluded["questions with fewer than two answers"] == 1
    assert dataset.ledger.excluded["distributions without an opinion"] == 1


MALFORMED = [
    (row(["a"], {"Peru": [1]}, question=" "), "question is empty", "' '"),
    (row("['a', ", {"Peru": [1]}), "options cannot be read", "\"['a',\""),
    (row("{}", {"Peru": [1]}), "options is not a list", "'{}'"),
    (row([], {"Peru": [1]}), "options is not a list", "'[]'"),
    (row(["a", ""], {"Peru": [1, 0]}), "an option is empty", "''"),
    (row(["a", None], {"Peru": [1, 0]}), "an option is not text", "None"),
    (row(["a"], "defaultdict(<class 'list'>, {'Peru': [nan]})"), "selections cannot be read", None),
    (row(["a"], "__import__('os').system('true')"), "selections cannot be read", None),
    (row(["a"], {}), "selections names no country", None),
    (row(["a"], "7"), "selections names no country", "'7'"),
    (row(["a"], {"Peru": [0.5, 0.5]}), "no distribution fits the options: 2 shares for 1 options", "'Peru'"),
    (row(["a"], {7: [1]}), "no distribution fits the options: a country is not text", "'7'"),
]


@pytest.mark.parametrize(("malformed", "reason", "value"), MALFORMED)
def test_malformed_rows_are_listed_with_their_place(tmp_path, malformed, reason, value):
    dataset = read(tmp_path, [GOOD, malformed])
    (rejected,) = dataset.ledger.rejected
    assert (rejected.source, rejected.file, rejected.line) == ("global_opinions", str(tmp_path / "opinions.csv"), 3)
    assert rejected.reason == reason
    assert value is None or rejected.value == value
    assert dataset.pairs.num_rows == 1


def test_missing_columns_and_files(tmp_path):
    path = tmp_path / "opinions.csv"
    path.write_text("question,options\nIs it so?,\"['a', 'b']\"\n")
    (rejected,) = global_opinions.read(GlobalOpinionsConfig(path=str(path)), min_score_gap=0).ledger.rejected
    assert (rejected.line, rejected.reason, rejected.value) == (2, "no selections", "['options', 'question']")
    with pytest.raises(DataError, match=r"nowhere.csv: no such file; check the path"):
        global_opinions.read(GlobalOpinionsConfig(path=str(tmp_path / "nowhere.csv")), min_score_gap=0)


def test_from_the_hub(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda name, subset, split: [GOOD])
    dataset = global_opinions.read(GlobalOpinionsConfig(), min_score_gap=0)
    assert pairs_by_text(dataset) == [("Peru", "Yes", "No", 0.7, 0.3)]


@needs_real_data
def test_the_real_file_adds_up():
    path = Path(os.environ["SCPO_REAL_DATA"]) / "global_opinions" / "global_opinions.csv"
    dataset = global_opinions.read(GlobalOpinionsConfig(path=str(path)), min_score_gap=0)
    ledger = dataset.ledger
    ledger.check(0)
    assert ledger.rows_read == ledger.rows_used == 1766
    assert (ledger.responses_mentioned, ledger.responses, dataset.pairs.num_rows) == (5785, 5781, 30_286)
    assert Counter(found.reason for found in ledger.suspicious) == {
        "a question about India only, attributed to another country": 4,
        "the question repeats that of line 421": 1,
        "the question repeats that of line 1590": 1,
    }
    numbers = Counter(dataset.pairs["community"].to_pylist())
    assert len(numbers) == 107
    assert numbers.most_common(4) == [("United States", 913), ("Brazil", 888), ("Pakistan", 880), ("Germany", 858)]
    assert ledger.excluded["samples averaged into another of their country"] == 80
    gaps = [pair["score_chosen"] - pair["score_rejected"] for pair in dataset.pairs.to_pylist()]
    assert min(gaps) >= 0.1 - 1e-9
