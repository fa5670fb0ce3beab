"""From source rows to splits: what stays on one side, what leaks, and when `prepared` is made again."""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.errors import ArtifactError, ConfigError
from scpo_ray.records import PAIRS, table
from scpo_ray.stages import prepare
from tests.prism_files import write_jsonl, write_prism

THINGS = ("boats", "gardens", "letters", "horses", "kitchens", "bridges", "markets", "weddings", "roofs", "schools")
PLACES = ("harbour", "valley", "mountain", "village", "island", "desert", "forest")
NUM_QUESTIONS = len(THINGS) * len(PLACES)


def question(number: int) -> str:
    """Questions of which no two are near-duplicates."""
    thing, place = THINGS[number % len(THINGS)], PLACES[number // len(THINGS)]
    return f"{thing} {number} {place} {number * 7 + 1} {thing}{place}"


def rows_of(community: str, *, num_annotators: int | None, num_pairs: int) -> list[dict]:
    rows = []
    for number in range(num_pairs):
        row = {"prompt": question(number % NUM_QUESTIONS), "chosen": f"yes {number}", "rejected": f"no {number}"}
        if num_annotators:
            row["annotator_id"] = f"{community} {number % num_annotators}"
        rows.append(row | {"community": community})
    return rows


@pytest.fixture
def pairs_config(tmp_path):
    """Writes rows and makes the config that reads them; Here is the majority."""

    def make(rows: Sequence[dict], **settings: object) -> Config:
        path = tmp_path / "pairs.jsonl"
        write_jsonl(path, list(rows))
        section = {"datasets": ["pair_files"], "pair_files": {"paths": [str(path)]}, "majority": ["Here"]}
        return Config(run_dir=str(tmp_path / "run"), prepare=section | settings)

    return make


@pytest.fixture
def prism_config(tmp_path):
    def make(**settings: object) -> Config:
        write_prism(
            tmp_path / "prism",
            num_annotators_by_country={"Chile": 30, "Israel": 20, "United States": 40, "United Kingdom": 25},
            seed=5,
        )
        section = {"datasets": ["prism"], "prism": {"path": str(tmp_path / "prism")}}
        return Config(run_dir=str(tmp_path / "run"), prepare=section | settings)

    return make


def prepared_pairs(config: Config) -> list[dict]:
    prepare.run(config)
    return read(config).to_pylist()


def read(config: Config) -> pa.Table:
    return RunDirectory(config.run_dir).read_table("prepared/pairs.parquet")


def sides(pairs: Sequence[dict], column: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        found[pair[column]].add(pair["split"])
    return found


def split_shares(pairs: Sequence[dict], community: str) -> dict[str, float]:
    counts = Counter(pair["split"] for pair in pairs if pair["community"] == community)
    return {split: counts[split] / counts.total() for split in ("train", "validation", "test")}


class TestSplits:
    def test_annotators_stay_on_one_side(self, prism_config):
        pairs = prepared_pairs(prism_config())
        assert all(len(of_annotator) == 1 for of_annotator in sides(pairs, "annotator_id").values())
        assert len({pair["annotator_id"] for pair in pairs}) > 100

    def test_fractions_hold_in_every_community(self, prism_config):
        pairs = prepared_pairs(prism_config(validation_fraction=0.15, test_fraction=0.25))
        for community in ("Chile", "Israel", "United States", "United Kingdom"):
            sizes = Counter(pair["annotator_id"] for pair in pairs if pair["community"] == community)
            unit = max(sizes.values()) / sizes.total()
            shares = split_shares(pairs, community)
            assert shares["train"] == pytest.approx(0.6, abs=unit)
            assert shares["validation"] == pytest.approx(0.15, abs=unit)
            assert shares["test"] == pytest.approx(0.25, abs=unit)

    def test_a_small_community_beside_a_large_one_keeps_its_fractions(self, pairs_config):
        rows = [
            *rows_of("Here", num_annotators=40, num_pairs=400),
            *rows_of("There", num_annotators=10, num_pairs=30),
        ]
        pairs = prepared_pairs(pairs_config(rows))
        assert split_shares(pairs, "There") == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2})
        assert split_shares(pairs, "Here") == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.026)

    def test_prompt_groups_stay_on_one_side_where_there_are_no_annotators(self, pairs_config):
        rows = [
            *rows_of("Here", num_annotators=None, num_pairs=140),
            *rows_of("There", num_annotators=None, num_pairs=140),
        ]
        pairs = prepared_pairs(pairs_config(rows))
        groups = sides(pairs, "prompt_group")
        assert len(groups) == NUM_QUESTIONS
        assert all(len(of_group) == 1 for of_group in groups.values())  # across the communities, too
        assert {pair["split"] for pair in pairs} == {"train", "validation", "test"}

    def test_each_community_has_the_unit_that_it_knows(self, pairs_config):
        rows = [
            *rows_of("Here", num_annotators=None, num_pairs=140),
            *rows_of("There", num_annotators=20, num_pairs=140),
        ]
        pairs = prepared_pairs(pairs_config(rows))
        here = [pair for pair in pairs if pair["community"] == "Here"]
        there = [pair for pair in pairs if pair["community"] == "There"]
        assert all(len(of_group) == 1 for of_group in sides(here, "prompt_group").values())
        assert all(len(of_annotator) == 1 for of_annotator in sides(there, "annotator_id").values())
        assert any(len(of_group) > 1 for of_group in sides(there, "prompt_group").values())

    def test_one_pair_without_an_annotator_makes_its_community_split_by_prompt(self, pairs_config):
        rows = rows_of("Here", num_annotators=7, num_pairs=140)
        del rows[3]["annotator_id"]
        pairs = prepared_pairs(pairs_config(rows))
        assert all(len(of_group) == 1 for of_group in sides(pairs, "prompt_group").values())

    @pytest.mark.parametrize("settings", [{}, {"split_by": "prompt"}])
    def test_a_test_question_is_never_in_the_global_models_training(self, pairs_config, settings):
        """Near-duplicates of one question in two communities share a group, and so a side."""
        num_annotators = 5 if settings else None
        rows = rows_of("Here", num_annotators=num_annotators, num_pairs=NUM_QUESTIONS)
        rows += rows_of("There", num_annotators=num_annotators, num_pairs=NUM_QUESTIONS)
        for row in rows:
            if row["community"] == "There":
                row["prompt"] = row["prompt"].upper() + " ?"
        pairs = prepared_pairs(pairs_config(rows, **settings))
        assert len({pair["prompt_id"] for pair in pairs}) == 2 * NUM_QUESTIONS
        assert len({pair["prompt_group"] for pair in pairs}) == NUM_QUESTIONS
        trained = {pair["prompt_group"] for pair in pairs if pair["community"] == "Here" and pair["split"] == "train"}
        tested = {pair["prompt_group"] for pair in pairs if pair["community"] == "There" and pair["split"] == "test"}
        assert trained and tested and not trained & tested

    def test_prompts_below_the_similarity_are_groups_of_their_own(self, pairs_config):
        words = "one two three four five six seven eight nine"
        rows = [
            {"prompt": f"{words} {ending}", "chosen": "yes", "rejected": "no", "community": "Here"}
            for ending in ("ten", "zehn")
        ] + rows_of("Here", num_annotators=None, num_pairs=20)
        for similarity, num_groups in ((0.85, 21), (0.95, 22)):  # 17 of 19 grams in common: cosine 0.895
            config = pairs_config(rows, near_duplicate_similarity=similarity)
            pairs = prepared_pairs(config.model_copy(update={"rebuild": True}))
            assert len({pair["prompt_group"] for pair in pairs}) == num_groups

    def test_the_prompt_is_the_users_words(self, pairs_config):
        """Histories that differ in the assistant's words alone are one group: the questions are the same."""
        rows = [
            {
                "messages": [
                    {"role": "user", "content": "boats in the harbour"},
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": "and the price of a mooring"},
                ],
                "chosen": "yes",
                "rejected": "no",
                "community": "Here",
            }
            for answer in ("there are many of them today", "none was seen since the storm")
        ]
        rows += rows_of("Here", num_annotators=None, num_pairs=20)
        pairs = prepared_pairs(pairs_config(rows))
        assert len({pair["prompt_id"] for pair in pairs}) == 22
        assert len({pair["prompt_group"] for pair in pairs}) == 21

    def test_published_variant(self, prism_config):
        """One random 80/20 split over all pairs: annotators and prompts on both sides, no validation."""
        settings = {"split_by": "pair", "stratify": False, "validation_fraction": 0}
        pairs = prepared_pairs(prism_config(**settings))
        assert {pair["split"] for pair in pairs} == {"train", "test"}
        share = sum(pair["split"] == "test" for pair in pairs) / len(pairs)
        assert share == pytest.approx(0.2, abs=4 * (0.16 / len(pairs)) ** 0.5)
        assert sum(len(of_annotator) == 2 for of_annotator in sides(pairs, "annotator_id").values()) > 80
        assert sum(len(of_turn) == 2 for of_turn in sides(pairs, "interaction_id").values()) > 80
        config = prism_config(**settings, communities=["Israel"])
        fewer = prepared_pairs(config.model_copy(update={"run_dir": f"{config.run_dir}-2"}))
        split_of = {pair["pair_id"]: pair["split"] for pair in pairs}
        assert 0 < len(fewer) < len(pairs)
        assert all(split_of[pair["pair_id"]] == pair["split"] for pair in fewer)  # nothing is balanced against others

    def test_another_salt_another_split(self, prism_config):
        config = prism_config()
        first = {pair["pair_id"]: pair["split"] for pair in prepared_pairs(config)}
        salted = prism_config(split_salt="pepper").model_copy(update={"rebuild": True})
        second = {pair["pair_id"]: pair["split"] for pair in prepared_pairs(salted)}
        assert first.keys() == second.keys() and first != second

    def test_annotators_asked_for_where_there_are_none(self, pairs_config):
        config = pairs_config(rows_of("Here", num_annotators=None, num_pairs=20), split_by="annotator")
        with pytest.raises(ConfigError, match=r"prepare\.split_by: annotator, but .* use auto or prompt"):
            prepare.run(config)

    def test_communities_beside_the_majority(self, prism_config):
        pairs = prepared_pairs(prism_config(communities=["Chile"]))
        assert {pair["community"] for pair in pairs} == {"Chile", "United Kingdom", "United States"}


def pair_row(split: str, annotator: str | None, prompt: str, group: str, chosen: str, rejected: str) -> dict:
    return {
        "pair_id": f"{split} {annotator} {chosen} {rejected}",
        "community": "Here",
        "annotator_id": annotator,
        "prompt_id": prompt,
        "prompt_group": group,
        "chosen_id": chosen,
        "rejected_id": rejected,
        "split": split,
    }


class TestLeakage:
    def test_counts_of_a_constructed_leak(self):
        rows = [
            pair_row("train", "ann", "p1", "g1", "r1", "r2"),
            pair_row("train", None, "p2", "g2", "r3", "r4"),
            pair_row("test", "ann", "p9", "g9", "r8", "r9"),  # the annotator
            pair_row("test", "bob", "p1", "g1", "r1", "r9"),  # prompt and group, one response of two
            pair_row("test", "bob", "p8", "g2", "r8", "r9"),  # a near-duplicate prompt
            pair_row("test", None, "p7", "g7", "r4", "r1"),  # both responses; no annotator is no leak
            pair_row("validation", "ann", "p2", "g2", "r4", "r3"),  # everything
            pair_row("validation", "cid", "p6", "g6", "r1", "r8"),
        ]
        assert prepare.count_leakage(table(rows, PAIRS)) == {
            "test": {
                "annotator_in_train": 0.25,
                "prompt_in_train": 0.25,
                "prompt_group_in_train": 0.5,
                "both_responses_in_train": 0.25,
            },
            "validation": {
                "annotator_in_train": 0.5,
                "prompt_in_train": 0.5,
                "prompt_group_in_train": 0.5,
                "both_responses_in_train": 0.5,
            },
        }

    def test_nothing_to_leak_into(self):
        rows = [pair_row("train", "ann", "p1", "g1", "r1", "r2")]
        leakage = prepare.count_leakage(table(rows, PAIRS))
        assert all(share == 0 for shares in leakage.values() for share in shares.values())

    def test_of_a_split_by_annotator(self, prism_config):
        config = prism_config()
        manifest = prepare.run(config)
        leakage = RunDirectory(config.run_dir).read_json("prepared/leakage.json")
        assert manifest.statistics["leakage"] == leakage == prepare.count_leakage(read(config))
        assert leakage["test"]["annotator_in_train"] == leakage["validation"]["annotator_in_train"] == 0

    def test_of_a_split_by_prompt(self, pairs_config):
        rows = rows_of("Here", num_annotators=3, num_pairs=140)
        leakage = prepare.run(pairs_config(rows, split_by="prompt")).statistics["leakage"]["test"]
        assert leakage["prompt_group_in_train"] == leakage["prompt_in_train"] == 0
        assert leakage["annotator_in_train"] == 1


def check_accounts(config: Config) -> dict:
    """Every row of every source is used or rejected; what is written is what is counted."""
    manifest = prepare.run(config)
    directory, statistics = RunDirectory(config.run_dir), manifest.statistics
    for source in statistics["sources"].values():
        assert source["rows_read"] == source["rows_used"] + sum(source["rejected"].values())
        assert source["responses_mentioned"] == source["responses"] + source["merged_duplicates"]
    pairs, responses = read(config), directory.read_table("prepared/responses.parquet")
    rejected = directory.read_table("prepared/rejected_rows.parquet")
    assert len(pairs) == len(set(pairs["pair_id"].to_pylist())) == statistics["num_pairs"]
    assert len(responses) == len(set(responses["response_id"].to_pylist())) == statistics["num_responses"]
    assert len(rejected) == sum(sum(source["rejected"].values()) for source in statistics["sources"].values())
    used = {*pairs["chosen_id"].to_pylist(), *pairs["rejected_id"].to_pylist()}
    assert used <= set(responses["response_id"].to_pylist())
    assert Counter(zip(pairs["community"].to_pylist(), pairs["split"].to_pylist(), strict=True)) == {
        (community, split): number
        for community, splits in statistics["communities"].items()
        for split, number in splits.items()
        if number
    }
    return statistics


class TestAccounting:
    def test_of_hand_made_rows(self, pairs_config):
        rows = rows_of("Here", num_annotators=5, num_pairs=60)
        rows += [
            rows[0],  # the same vote of the same annotator again
            rows[1] | {"annotator_id": "Here 99"},  # somebody else's vote on the same two responses
            rows[2] | {"score_chosen": 5, "score_rejected": 5},
            rows[3] | {"chosen": ""},
            rows[4] | {"community": None},
        ]
        statistics = check_accounts(pairs_config(rows))
        assert statistics["num_pairs"] == 61
        assert statistics["num_responses"] == 120
        assert statistics["majority"] == ["Here"]
        assert statistics["sources"]["pair_files"] == {
            "rows_read": 65,
            "rows_used": 63,
            "rejected": {"chosen is empty": 1, "no community": 1},
            "excluded": {"duplicate pairs": 1, "tied pairs": 1},
            "suspicious": 0,
            "responses_mentioned": 124,
            "merged_duplicates": 4,
            "responses": 120,
        }

    def test_of_two_sources(self, prism_config, pairs_config):
        pair_files = pairs_config(rows_of("Here", num_annotators=5, num_pairs=60)).prepare.pair_files
        config = prism_config(datasets=["prism", "pair_files"], pair_files=pair_files, majority=["Chile"])
        statistics = check_accounts(config)
        assert set(statistics["sources"]) == {"prism", "pair_files"}
        assert statistics["communities"].keys() == {"Chile", "Israel", "United States", "United Kingdom", "Here"}

    def test_of_a_source_read_twice(self, pairs_config, tmp_path):
        """The same rows under two names double nothing that is told apart by its annotator."""
        rows = rows_of("Here", num_annotators=5, num_pairs=60)
        config = pairs_config(rows)
        write_jsonl(tmp_path / "again.jsonl", rows)
        paths = [*config.prepare.pair_files.paths, str(tmp_path / "again.jsonl")]
        statistics = check_accounts(pairs_config(rows, pair_files={"paths": paths}))
        assert statistics["num_pairs"] == 60
        assert statistics["sources"]["pair_files"]["excluded"] == {"duplicate pairs": 60}


def test_one_prompt_under_two_ids_is_one_group(pairs_config):
    """Some sources number every vote: responses merge by content, and each pair keeps its own prompt_id."""
    rows = rows_of("Here", num_annotators=5, num_pairs=60)
    again = [
        row | {"prompt_id": f"again {index}", "annotator_id": "someone else"} for index, row in enumerate(rows[:9])
    ]
    config = pairs_config([*rows, *again])
    prepare.run(config)
    pairs = RunDirectory(config.run_dir).read_table("prepared/pairs.parquet").to_pylist()
    groups: dict[tuple, set] = {}
    for pair in pairs:
        groups.setdefault((pair["chosen_id"], pair["rejected_id"]), set()).add(pair["prompt_group"])
    assert {pair["prompt_id"] for pair in pairs} >= {f"again {index}" for index in range(9)}
    assert all(len(found) == 1 for found in groups.values())


class TestReuse:
    def test_a_second_run_reads_nothing(self, pairs_config, monkeypatch):
        config = pairs_config(rows_of("Here", num_annotators=5, num_pairs=60))
        first = prepare.run(config)
        before = stamps(config)
        monkeypatch.setattr(prepare, "_read", lambda *_: pytest.fail("read again"))
        assert prepare.run(config) == first
        assert stamps(config) == before

    def test_changed_source_file(self, pairs_config):
        rows = rows_of("Here", num_annotators=5, num_pairs=60)
        config = pairs_config(rows)
        first = prepare.run(config)
        pairs_config([*rows, rows[0] | {"chosen": "maybe"}])
        with pytest.raises(ArtifactError) as raised:
            prepare.run(config)
        (path,) = config.prepare.pair_files.paths
        assert str(raised.value) == (
            f"{config.run_dir}/prepared: made from another prepare.pair_files.paths[0] {Path(path).name} (it has changed "
            "since); use another --run_dir, "
            "or --rebuild true to remake it and what follows"
        )
        rebuilt = prepare.run(config.model_copy(update={"rebuild": True}))
        assert rebuilt.statistics["num_pairs"] == first.statistics["num_pairs"] + 1
        assert rebuilt.content_hash != first.content_hash
        assert prepare.run(config) == rebuilt

    def test_the_same_file_under_another_path(self, pairs_config, tmp_path):
        config = pairs_config(rows_of("Here", num_annotators=5, num_pairs=60))
        first = prepare.run(config)
        (path,) = config.prepare.pair_files.paths
        moved = tmp_path / "elsewhere" / Path(path).name
        moved.parent.mkdir()
        Path(path).rename(moved)
        pair_files = config.prepare.pair_files.model_copy(update={"paths": (str(moved),)})
        config = config.model_copy(update={"prepare": config.prepare.model_copy(update={"pair_files": pair_files})})
        assert prepare.run(config) == first

    def test_a_file_of_a_folder_counts_too(self, prism_config, tmp_path):
        config = prism_config()
        prepare.run(config)
        survey = tmp_path / "prism" / "survey.jsonl"
        survey.write_text(survey.read_text().replace("Israel", "Egypt"))
        with pytest.raises(ArtifactError, match=r"made from another .*survey\.jsonl"):
            prepare.run(config)

    def test_touched_but_equal(self, pairs_config):
        rows = rows_of("Here", num_annotators=5, num_pairs=60)
        config = pairs_config(rows)
        first = prepare.run(config)
        (path,) = config.prepare.pair_files.paths
        os.utime(path, (1, 1))
        assert prepare.run(config) == first

    def test_rebuild_leaves_what_is_right(self, pairs_config):
        """`--rebuild` remakes what another config made, not what is this config's own."""
        config = pairs_config(rows_of("Here", num_annotators=5, num_pairs=60))
        first = prepare.run(config)
        assert prepare.run(config.model_copy(update={"rebuild": True})) == first

    @pytest.mark.parametrize(
        "changes",
        [
            {"prepare": {"atlas": {"num_prompts": 77}}},
            {"prepare": {"prism": {"path": "/elsewhere", "history": "none"}}},
            {"prepare": {"global_opinions": {"min_share_gap": 0.3}}},
            {"prepare": {"general_preferences": {"community": "Everybody"}}},
            {"prepare": {"max_rejected_share": 0.5}},  # not part of the identity
            {"seed": 9},  # the atlas alone is drawn from it
            {"train": {"learning_rate": 1e-3}, "score": {"num_scorers": 2}, "report": {"title": "another"}},
            {"select": {"agreement_threshold": 0.6}, "format": {"max_tokens": 64}},
        ],
        ids=str,
    )
    def test_what_does_not_reach_the_result_does_not_invalidate(self, pairs_config, changes):
        config = pairs_config(rows_of("Here", num_annotators=5, num_pairs=60))
        first = prepare.run(config)
        assert prepare.run(changed(config, changes)) == first

    @pytest.mark.parametrize(
        ("changes", "key"),
        [
            ({"prepare": {"min_score_gap": 1.0}}, "prepare.min_score_gap = 0.0, this config has 1.0"),
            ({"prepare": {"validation_fraction": 0.0}}, "prepare.validation_fraction = 0.1, this config has 0.0"),
            ({"prepare": {"split_by": "prompt"}}, 'prepare.split_by = "auto", this config has "prompt"'),
            ({"prepare": {"stratify": False}}, "prepare.stratify = true, this config has false"),
            ({"prepare": {"split_salt": "x"}}, 'prepare.split_salt = "scpo", this config has "x"'),
            ({"prepare": {"communities": ["Here"]}}, 'prepare.communities = null, this config has ["Here"]'),
        ],
        ids=str,
    )
    def test_what_reaches_the_result_does(self, pairs_config, changes, key):
        config = pairs_config(rows_of("Here", num_annotators=5, num_pairs=60))
        prepare.run(config)
        with pytest.raises(ArtifactError) as raised:
            prepare.run(changed(config, changes))
        assert f"made with {key}; " in str(raised.value)

    def test_the_atlas_depends_on_the_seed(self, tiny_config):
        first = prepare.run(tiny_config())
        assert first.identity["seed"] == 0
        with pytest.raises(ArtifactError, match="made with seed = 0, this config has 1"):
            prepare.run(tiny_config(seed=1))

    def test_the_same_everywhere(self, prism_config):
        """Two run directories of one config hold the same bytes."""
        config = prism_config()
        first = prepare.run(config)
        second = prepare.run(config.model_copy(update={"run_dir": f"{config.run_dir}-2"}))
        assert first.content_hash == second.content_hash


def changed(config: Config, changes: dict) -> Config:
    values = config.model_dump(exclude_unset=True)
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return Config(**values)


def stamps(config: Config) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(config.run_dir, "prepared").iterdir()}


class TestAtlas:
    def test_truth_lies_beside_the_pairs(self, tiny_config):
        config = tiny_config()
        check_accounts(config)
        truth = RunDirectory(config.run_dir).read_table("prepared/pair_truth.parquet")
        assert set(truth["pair_id"].to_pylist()) == set(read(config)["pair_id"].to_pylist())
        assert set(truth["kind"].to_pylist()) == {"agreement", "culture", "noise", "outlier"}


REAL = os.environ.get("SCPO_REAL_DATA")


@pytest.mark.skipif(not REAL, reason="SCPO_REAL_DATA names no folder with global_opinions/global_opinions.csv")
class TestGlobalOpinions:
    @pytest.fixture(scope="class")
    def config(self, tmp_path_factory) -> Config:
        return Config(
            run_dir=str(tmp_path_factory.mktemp("real") / "run"),
            prepare={
                "datasets": ["global_opinions"],
                "global_opinions": {"path": f"{REAL}/global_opinions/global_opinions.csv"},
                "majority": ["United States", "United Kingdom", "Germany"],
                "communities": ["Brazil", "Pakistan", "Nigeria", "India"],
            },
        )

    def test_every_row_is_accounted_for(self, config):
        statistics = check_accounts(config)
        with open(config.prepare.global_opinions.path, encoding="utf-8", newline="") as file:
            num_rows = sum(1 for _ in csv.reader(file)) - 1
        assert statistics["sources"]["global_opinions"]["rows_read"] == num_rows > 1000
        assert statistics["communities"].keys() == {*config.prepare.majority, *config.prepare.communities}

    def test_groups_stay_on_one_side(self, config):
        pairs = prepared_pairs(config)
        assert {pair["annotator_id"] for pair in pairs} == {None}
        groups = sides(pairs, "prompt_group")
        assert len(groups) < len({pair["prompt_id"] for pair in pairs})  # there are near-duplicates
        assert all(len(of_group) == 1 for of_group in groups.values())
        for community in (*config.prepare.majority, *config.prepare.communities):
            shares = split_shares(pairs, community)
            assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.08)  # whole groups
        leakage = RunDirectory(config.run_dir).read_json("prepared/leakage.json")
        assert set(leakage["test"].values()) == set(leakage["validation"].values()) == {0.0}
