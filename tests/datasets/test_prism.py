"""PRISM: exact contexts, pairs and ids of hand-made conversations, and every way in which a row is malformed."""

import tempfile
from collections import Counter
from pathlib import Path

import pytest

from scpo_ray.config import PrismConfig
from scpo_ray.datasets import base, prism
from scpo_ray.datasets.base import Dataset
from scpo_ray.errors import DataError, StorageError
from scpo_ray.records import Message, content_id, context_id, response_id
from tests.prism_files import write_jsonl, write_prism

SURVEY = [
    {
        "user_id": "u1",
        "age": "25-34 years old",
        "gender": "Female",
        "education": "Some University",
        "employment_status": "Student",
        "religion": {"simplified": "Christian"},
        "ethnicity": {"simplified": "White"},
        "location": {"reside_country": "Chile", "birth_country": "Peru", "reside_subregion": "South America"},
    },
    {
        "user_id": "u2",
        "religion": {"simplified": "Prefer not to say"},
        "location": {"reside_country": "Israel", "birth_country": "Israel"},
    },
]


def utterance(response: str, score: object, *, turn: int = 0, chosen: bool = False, user: str = "u1", **other) -> dict:
    return {
        "user_id": user,
        "conversation_id": f"c-{user}",
        "interaction_id": f"i-{user}-{turn}",
        "turn": turn,
        "user_prompt": f"question {turn}",
        "model_response": response,
        "model_name": response,
        "score": score,
        "if_chosen": chosen,
        "included_in_balanced_subset": True,
    } | other


UTTERANCES = [
    utterance("A", 90, chosen=True),
    utterance("B", 40),
    utterance("C", 40),
    utterance("D", 38),
    utterance("E", 70, turn=1, chosen=True),
    utterance("F", 71, turn=1),
]
FIRST_CONTEXT: list[Message] = [{"role": "user", "content": "question 0"}]
SECOND_CONTEXT: list[Message] = [
    {"role": "user", "content": "question 0"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "question 1"},
]


def read(
    folder: Path,
    *,
    survey: list[dict] = SURVEY,
    utterances: list[dict] = UTTERANCES,
    min_score_gap: float = 0.0,
    **options,
) -> Dataset:
    write_jsonl(folder / "survey.jsonl", survey)
    write_jsonl(folder / "utterances.jsonl", utterances)
    dataset = prism.read(PrismConfig(path=str(folder), **options), min_score_gap=min_score_gap)
    ledger = dataset.ledger
    assert ledger.rows_read == ledger.rows_used + len(ledger.rejected)
    assert ledger.responses == dataset.responses.num_rows
    return dataset


def pairs_by_text(dataset: Dataset) -> list[tuple[str, str, float, float]]:
    texts = {row["response_id"]: row["response"] for row in dataset.responses.to_pylist()}
    return [
        (texts[row["chosen_id"]], texts[row["rejected_id"]], row["score_chosen"], row["score_rejected"])
        for row in dataset.pairs.to_pylist()
    ]


def test_all_pairs_of_a_conversation_with_its_history(tmp_path):
    dataset = read(tmp_path)
    assert pairs_by_text(dataset) == [
        ("A", "B", 90, 40),
        ("A", "C", 90, 40),
        ("A", "D", 90, 38),
        ("B", "D", 40, 38),
        ("C", "D", 40, 38),
        ("F", "E", 71, 70),
    ]
    assert [(row["response"], row["context"]) for row in dataset.responses.to_pylist()] == [
        *((name, FIRST_CONTEXT) for name in "ABCD"),
        *((name, SECOND_CONTEXT) for name in "EF"),
    ]
    assert dict(dataset.ledger.excluded) == {"tied pairs": 1}
    assert (dataset.ledger.rows_read, dataset.ledger.rows_used, dataset.ledger.responses_mentioned) == (6, 6, 6)


def test_ids_are_those_of_the_content(tmp_path):
    last = read(tmp_path).pairs.to_pylist()[-1]
    interaction_id = content_id("prism", "i-u1-1")
    chosen_id, rejected_id = response_id(SECOND_CONTEXT, "F"), response_id(SECOND_CONTEXT, "E")
    assert last == {
        "pair_id": content_id("prism", interaction_id, "Chile", "u1", chosen_id, rejected_id, 0),
        "interaction_id": interaction_id,
        "community": "Chile",
        "annotator_id": "u1",
        "prompt_id": context_id(SECOND_CONTEXT),
        "prompt_group": None,
        "chosen_id": chosen_id,
        "rejected_id": rejected_id,
        "score_chosen": 71.0,
        "score_rejected": 70.0,
        "split": None,
        "source": "prism",
    }


def test_row_order_does_not_matter_for_histories(tmp_path):
    forward, backward = read(tmp_path), read(tmp_path, utterances=UTTERANCES[::-1])
    assert set(forward.responses["response_id"].to_pylist()) == set(backward.responses["response_id"].to_pylist())
    assert set(forward.pairs["pair_id"].to_pylist()) == set(backward.pairs["pair_id"].to_pylist())


def test_a_conversation_that_goes_on_after_others_is_one(tmp_path):
    other = [utterance("X", 10, user="u3", chosen=True), utterance("Y", 5, user="u3")]
    survey = [*SURVEY, SURVEY[0] | {"user_id": "u3"}]
    together = read(tmp_path, survey=survey, utterances=[*UTTERANCES, *other])
    scattered = read(tmp_path, survey=survey, utterances=[*UTTERANCES[:4], *other, *UTTERANCES[4:]])
    assert scattered.responses.to_pylist() == together.responses.to_pylist()
    assert scattered.pairs.to_pylist() == together.pairs.to_pylist()
    assert scattered.ledger == together.ledger


def test_rows_put_into_a_file_are_the_same_rows(tmp_path, monkeypatch):
    whole = read(tmp_path)
    monkeypatch.setattr(base, "_ROWS_AS_OBJECTS", 2)
    parts = read(tmp_path)
    assert (
        parts.responses.to_pylist() == whole.responses.to_pylist() and parts.responses.schema == whole.responses.schema
    )
    assert parts.pairs.to_pylist() == whole.pairs.to_pylist()


def test_no_room_for_them_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_ROWS_AS_OBJECTS", 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "away"))
    with pytest.raises(StorageError, match=r"away: rows cannot be put there .* name another folder in TMPDIR$"):
        read(tmp_path)


def test_without_history_the_context_is_the_last_prompt(tmp_path):
    contexts = read(tmp_path, history="none").responses["context"].to_pylist()
    assert contexts == [FIRST_CONTEXT] * 4 + [[{"role": "user", "content": "question 1"}]] * 2


def test_chosen_vs_rest_ignores_scores(tmp_path):
    dataset = read(tmp_path, pairing="chosen_vs_rest", min_score_gap=60)
    assert pairs_by_text(dataset) == [("A", "B", 90, 40), ("A", "C", 90, 40), ("A", "D", 90, 38), ("E", "F", 70, 71)]
    assert not dataset.ledger.excluded


def test_chosen_vs_rest_counts_turns_without_a_chosen_response(tmp_path):
    dataset = read(tmp_path, utterances=[utterance("A", 9), utterance("B", 8)], pairing="chosen_vs_rest")
    assert dataset.pairs.num_rows == 0
    assert dict(dataset.ledger.excluded) == {"interactions without a chosen response": 1}


def test_min_score_gap_excludes_gaps_up_to_it(tmp_path):
    dataset = read(tmp_path, min_score_gap=2)
    assert [pair[:2] for pair in pairs_by_text(dataset)] == [("A", "B"), ("A", "C"), ("A", "D")]
    assert dataset.ledger.excluded["tied pairs"] == 4


@pytest.mark.parametrize(
    ("field", "community"),
    [
        ("reside_country", "Chile"),
        ("birth_country", "Peru"),
        ("reside_subregion", "South America"),
        ("religion", "Christian"),
        ("ethnicity", "White"),
        ("gender", "Female"),
        ("age", "25-34 years old"),
        ("education", "Some University"),
        ("employment", "Student"),
    ],
)
def test_every_community_field(tmp_path, field, community):
    dataset = read(tmp_path, survey=SURVEY[:1], community_field=field)
    assert set(dataset.pairs["community"].to_pylist()) == {community}


def test_employment_under_its_older_name(tmp_path):
    survey = [{"user_id": "u1", "employment": "Retired"}]
    assert set(read(tmp_path, survey=survey, community_field="employment").pairs["community"].to_pylist()) == {
        "Retired"
    }


@pytest.mark.parametrize("unstated", ["Prefer not to say", "", None])
def test_unstated_communities_are_excluded(tmp_path, unstated):
    survey = [SURVEY[0], {"user_id": "u2", "religion": {"simplified": unstated}}]
    rows = [*UTTERANCES, utterance("X", 5, user="u2"), utterance("Y", 6, user="u2")]
    dataset = read(tmp_path, survey=survey, utterances=rows, community_field="religion")
    assert set(dataset.pairs["community"].to_pylist()) == {"Christian"}
    assert dataset.ledger.excluded["responses of annotators who did not state their religion"] == 2
    assert (dataset.ledger.rows_used, dataset.ledger.responses_mentioned) == (8, 6)


def test_balanced_subset(tmp_path):
    rows = [*UTTERANCES, utterance("X", 5, user="u2", included_in_balanced_subset=False), utterance("Y", 6, user="u2")]
    dataset = read(tmp_path, utterances=rows, balanced_subset=True)
    assert dataset.ledger.excluded["responses outside the balanced subset"] == 1
    assert dataset.ledger.excluded["interactions with one usable response"] == 1
    assert dataset.responses.num_rows == 7


def test_equal_responses_merge_and_make_no_pair(tmp_path):
    rows = [utterance("A", 9, chosen=True), utterance("A", 8), utterance("B", 7)]
    dataset = read(tmp_path, utterances=rows)
    assert pairs_by_text(dataset) == [("A", "B", 9, 7)]
    assert dict(dataset.ledger.excluded) == {"pairs of equal responses": 1, "duplicate pairs": 1}
    assert (dataset.ledger.responses_mentioned, dataset.ledger.merged_duplicates) == (3, 1)


def test_of_several_chosen_responses_the_next_turns_model_tells(tmp_path):
    rows = [
        utterance("A", 95, chosen=True),
        utterance("B", 90, chosen=True),
        utterance("E", 7, turn=1, chosen=True, model_name="B"),
        utterance("F", 8, turn=1, model_name="B"),
    ]
    dataset = read(tmp_path, utterances=rows)
    assert dataset.responses["context"].to_pylist()[-1][1] == {"role": "assistant", "content": "B"}
    (suspicious,) = dataset.ledger.suspicious
    assert (suspicious.line, suspicious.reason, suspicious.value) == (2, "2 chosen responses in one turn", "'i-u1-0'")


MALFORMED = [
    ({"model_response": "EMPTY STRING"}, "model_response is EMPTY STRING", "'EMPTY STRING'"),
    ({"model_response": "  "}, "model_response is empty", "'  '"),
    ({"model_response": None}, "no model_response", None),
    ({"model_response": 7}, "model_response is not text", "7"),
    ({"model_response": "\ud800"}, "model_response holds half a surrogate pair", "'\\ud800'"),
    ({"user_prompt": ""}, "user_prompt is empty", "''"),
    ({"score": None}, "no score", None),
    ({"score": float("nan")}, "score is not finite", "nan"),
    ({"score": 10**400}, "score is not finite", None),
    ({"score": "90"}, "score is not a number", "'90'"),
    ({"score": True}, "score is not a number", "True"),
    ({"score": 0}, "score is outside 1-100", "0.0"),
    ({"score": 101}, "score is outside 1-100", "101.0"),
    ({"user_id": "nobody"}, "user_id has no usable row in the survey", "'nobody'"),
    ({"turn": -1}, "turn is not a whole number from 0", "-1"),
    ({"turn": "0"}, "turn is not a whole number from 0", "'0'"),
    ({"if_chosen": "yes"}, "if_chosen is not true or false", "'yes'"),
    (
        {"user_prompt": "other"},
        "user_id, interaction_id or user_prompt differs from line 1 of the same turn",
        "('u1', 'i-u1-0', 'other')",
    ),
]


@pytest.mark.parametrize(("change", "reason", "value"), MALFORMED)
def test_malformed_utterances_are_listed_with_their_place(tmp_path, change, reason, value):
    rows = [UTTERANCES[0], utterance("B", 40) | change, *UTTERANCES[2:]]
    (tmp_path / "utterances.jsonl").unlink(missing_ok=True)
    dataset = read(tmp_path, utterances=[row for row in rows if "\ud800" not in str(row["model_response"])])
    if "\ud800" in str(change.get("model_response")):  # only JSON's escape can spell it in a UTF-8 file
        lines = (tmp_path / "utterances.jsonl").read_text().splitlines()
        lines.insert(1, lines[1].replace('"model_response": "C"', '"model_response": "\\ud800"'))
        (tmp_path / "utterances.jsonl").write_text("\n".join(lines))
        dataset = prism.read(PrismConfig(path=str(tmp_path)), min_score_gap=0)
    (rejected,) = dataset.ledger.rejected
    assert (rejected.source, rejected.file, rejected.line) == ("prism", str(tmp_path / "utterances.jsonl"), 2)
    assert rejected.reason == reason
    assert value is None or rejected.value == value
    assert (dataset.ledger.rows_read, dataset.ledger.responses_mentioned, dataset.responses.num_rows) == (6, 5, 5)


@pytest.mark.parametrize("column", ["user_id", "conversation_id", "interaction_id", "turn", "user_prompt", "if_chosen"])
def test_missing_columns_are_malformed(tmp_path, column):
    row = {name: value for name, value in utterance("B", 40).items() if name != column}
    dataset = read(tmp_path, utterances=[UTTERANCES[0], row, *UTTERANCES[2:]])
    assert [(rejected.line, rejected.reason) for rejected in dataset.ledger.rejected] == [(2, f"no {column}")]


def test_a_broken_history_rejects_the_later_turns(tmp_path):
    rows = [utterance("EMPTY STRING", 90, chosen=True), *UTTERANCES[1:]]
    dataset = read(tmp_path, utterances=rows)
    reason = "the history is broken: turn 0 has no usable chosen response"
    assert [(rejected.line, rejected.reason) for rejected in dataset.ledger.rejected[1:]] == [(5, reason), (6, reason)]
    assert dataset.responses["response"].to_pylist() == ["B", "C", "D"]
    assert read(tmp_path, utterances=rows, history="none").responses.num_rows == 5


def test_malformed_survey_rows_count_as_read_and_rejected(tmp_path):
    survey = [SURVEY[0], {"user_id": "u2"}, SURVEY[0], {"age": "?"}]
    dataset = read(tmp_path, survey=survey, utterances=[*UTTERANCES, utterance("X", 5, user="u2")])
    assert [(rejected.line, rejected.reason) for rejected in dataset.ledger.rejected] == [
        (2, "no location.reside_country"),
        (3, "user_id repeats"),
        (4, "no user_id"),
        (7, "user_id has no usable row in the survey"),
    ]
    assert (dataset.ledger.rows_read, dataset.ledger.rows_used) == (10, 6)


def test_missing_folders_and_files_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"/nowhere: no such folder; name one that holds survey.jsonl and utterances"):
        prism.read(PrismConfig(path=str(tmp_path / "nowhere")), min_score_gap=0)
    with pytest.raises(DataError, match=r"survey.jsonl: no such file; check the path"):
        prism.read(PrismConfig(path=str(tmp_path)), min_score_gap=0)
    write_jsonl(tmp_path / "survey.jsonl", SURVEY)
    with pytest.raises(DataError, match=r"utterances.jsonl: no such file; check the path"):
        prism.read(PrismConfig(path=str(tmp_path)), min_score_gap=0)
    with pytest.raises(DataError, match=r"survey.jsonl: is a file; name the folder that holds"):
        prism.read(PrismConfig(path=str(tmp_path / "survey.jsonl")), min_score_gap=0)


def test_from_the_hub(monkeypatch):
    tables = {"survey": SURVEY, "utterances": UTTERANCES}
    monkeypatch.setattr("datasets.load_dataset", lambda name, subset, split: tables[subset])
    dataset = prism.read(PrismConfig(), min_score_gap=0)
    assert dataset.pairs.num_rows == 6
    tables["utterances"] = [UTTERANCES[0] | {"score": None}]
    (rejected,) = prism.read(PrismConfig(), min_score_gap=0).ledger.rejected
    assert (rejected.file, rejected.line) == ("HannahRoseKirk/prism-alignment/utterances", 1)


def test_generated_files_add_up_and_are_deterministic(tmp_path):
    numbers = {"Chile": 5, "United States": 9}
    write_prism(tmp_path / "a", num_annotators_by_country=numbers, seed=1)
    write_prism(tmp_path / "b", num_annotators_by_country=numbers, seed=1)
    write_prism(tmp_path / "c", num_annotators_by_country=numbers, seed=2)
    contents = [(tmp_path / name / "utterances.jsonl").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]
    dataset = prism.read(PrismConfig(path=str(tmp_path / "a")), min_score_gap=0)
    ledger = dataset.ledger
    ledger.check(0)
    assert ledger.rows_read == ledger.responses + ledger.merged_duplicates == contents[0].count(b"\n")
    num_interactions = Counter(Counter(dataset.responses["interaction_id"].to_pylist()).values())
    assert set(num_interactions) <= {2, 4}
    assert num_interactions[2] > 5
    assert num_interactions[4] >= 28
    assert dataset.pairs.num_rows == 6 * num_interactions[4] + num_interactions[2] - ledger.excluded["tied pairs"]
    assert ledger.excluded["tied pairs"] > 0
    annotators = {(row["community"], row["annotator_id"]) for row in dataset.pairs.to_pylist()}
    assert Counter(community for community, _ in annotators) == numbers
    lengths = {len(context) for context in dataset.responses["context"].to_pylist()}
    assert lengths == {1, 3, 5}
