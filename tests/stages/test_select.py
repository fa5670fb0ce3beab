"""The decision ledger on scores written by hand: what is kept, how strongly, why, and when training has to run again."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from scpo_ray.artifacts import Manifest, Recipe, RunDirectory
from scpo_ray.config import Config
from scpo_ray.errors import ArtifactError
from scpo_ray.records import DECISIONS, SCORES, ModelName
from scpo_ray.stages import prepare, recipes, select, train, train_global
from tests.prism_files import write_jsonl

MARGINS = (-2.2, -1.1, 0.0, 0.4, 0.8, 0.9, 1.5, 3.0)
"""r⁺ - r⁻ of every community's pairs, again and again; τ = 0.7 lies at ln(0.7 / 0.3) = 0.847, between 0.8 and 0.9."""
KEPT_BY_FILTER = (True, True, True, True, True, False, False, False)
WEIGHTS = (math.exp(-2), math.exp(-1), 1, 1, 1, 1, 1, 1)
INVERSE = (1, 1, 1, *(math.exp(-margin / 1.1) for margin in MARGINS[3:]))
BELOW, AGREES = "kept: agreement below threshold", "dropped: the global model agrees"
FULL, LIGHTER = "kept: full weight", "kept: lighter, the global model disagrees"
LIGHTER_INVERSE = "kept: lighter, the global model agrees"

EXPECTED = {
    "filter_weight": (
        KEPT_BY_FILTER,
        tuple(weight * kept for weight, kept in zip(WEIGHTS, KEPT_BY_FILTER, strict=True)),
        (BELOW,) * 5 + (AGREES,) * 3,
    ),
    "filter": (KEPT_BY_FILTER, (1,) * 5 + (0,) * 3, (BELOW,) * 5 + (AGREES,) * 3),
    "weight": ((True,) * 8, WEIGHTS, (LIGHTER,) * 2 + (FULL,) * 6),
    "inverse_weight": ((True,) * 8, INVERSE, (FULL,) * 3 + (LIGHTER_INVERSE,) * 5),
    "none": ((True,) * 8, (1,) * 8, ("kept: every pair is",) * 8),
}
CONTROLS = ["filter", "weight", "inverse_weight", "none"]


@pytest.fixture
def config(tmp_path, tiny_reward_model) -> Config:
    """Here and There with 40 pairs each, prepared and scored: the pair `c n` has the margin n mod 8."""
    rows = [
        {
            "prompt": f"{place} {n} {n * n} ?",
            "chosen": f"{n} yes",
            "rejected": f"{n} no",
            "community": place,
            "annotator_id": f"{place} {n // 4}",
        }
        for place in ("Here", "There")
        for n in range(40)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    section = {"datasets": ["pair_files"], "pair_files": {"paths": [str(tmp_path / "pairs.jsonl")]}}
    config = Config(
        run_dir=str(tmp_path / "run"),
        prepare=section | {"majority": ["Here"]},
        train_global={"model": str(tiny_reward_model), "epochs": 0},
        select={"controls": CONTROLS},
    )
    prepare.run(config)
    train_global.run(config)
    write_scores(config, MARGINS)
    return config


def write_scores(config: Config, margins: Sequence[float]) -> None:
    """Rewards r⁻ = 0.25 and r⁺ = 0.25 + margin, by the number that the response carries."""
    directory = RunDirectory(config.run_dir)
    responses = directory.read_table("prepared/responses.parquet").to_pylist()
    rewards = []
    for row in responses:
        number, word = row["response"].split()
        rewards.append(0.25 + (margins[int(number) % len(margins)] if word == "yes" else 0.0))
    with recipes.scores(config, directory).making(directory) as draft:
        columns = {
            "response_id": [row["response_id"] for row in responses],
            "model_hash": ["by hand"] * len(responses),
            "reward": np.array(rewards, dtype=np.float32),
            "num_tokens": [1] * len(responses),
            "truncated": [False] * len(responses),
        }
        draft.write_table("scores.parquet", pa.table(columns, schema=SCORES))


def ledger_of(config: Config, strategy: str) -> dict[tuple[str, int], dict]:
    """(community, number of its pair) -> row."""
    directory = RunDirectory(config.run_dir)
    table = directory.read_table(f"decisions/{strategy}/decisions.parquet")
    assert table.schema.equals(DECISIONS)
    texts = {r["response_id"]: r["response"] for r in directory.read_table("prepared/responses.parquet").to_pylist()}
    pairs = directory.read_table("prepared/pairs.parquet").to_pylist()
    assert [pair["pair_id"] for pair in pairs] == table["pair_id"].to_pylist()
    found = {}
    for pair, row in zip(pairs, table.to_pylist(), strict=True):
        assert (row["community"], row["split"]) == (pair["community"], pair["split"])
        found[pair["community"], int(texts[pair["chosen_id"]].split()[0])] = row
    return found


def with_select(config: Config, **changes: object) -> Config:
    section = config.model_dump(exclude_unset=True)["select"] | changes
    return Config(**{**config.model_dump(exclude_unset=True), "select": section})


@pytest.mark.parametrize("strategy", EXPECTED)
def test_ledger(config, strategy):
    select.run(config)
    kept, weights, reasons = EXPECTED[strategy]
    ledger = ledger_of(config, strategy)
    assert len(ledger) == 80
    for (_, number), row in ledger.items():
        case = number % len(MARGINS)
        assert row["global_reward_rejected"] == 0.25
        assert row["global_reward_chosen"] == pytest.approx(0.25 + MARGINS[case], abs=1e-6)
        assert row["agreement"] == pytest.approx(1 / (1 + math.exp(-MARGINS[case])), abs=1e-6)
        assert row["kept"] is kept[case]
        assert row["weight"] == pytest.approx(weights[case], abs=1e-6)
        assert row["reason"] == reasons[case]


def test_test_pairs_are_decided_too(config):
    """Nothing trains on them; the report says what the filter would have kept."""
    select.run(config)
    assert {row["split"] for row in ledger_of(config, "filter").values()} == {"train", "validation", "test"}


@pytest.mark.parametrize("strategy", EXPECTED)
def test_statistics(config, strategy):
    manifests = {manifest.name: manifest for manifest in select.run(config)}
    statistics = manifests[f"decisions/{strategy}"].statistics["communities"]
    ledger = ledger_of(config, strategy)
    assert statistics.keys() == {"Here", "There"}
    for community, said in statistics.items():
        rows = [row for (name, _), row in ledger.items() if name == community]
        train_rows = [row for row in rows if row["split"] == "train"]
        test_rows = [row for row in rows if row["split"] == "test"]
        weights = [row["weight"] for row in train_rows if row["kept"]]
        assert said["num_kept"] == len(weights)
        assert said["kept_share"] == {
            "train": round(len(weights) / len(train_rows), 4),
            "test": round(sum(row["kept"] for row in test_rows) / len(test_rows), 4),
        }
        assert said["effective_sample_size"] == round(sum(weights) ** 2 / sum(w * w for w in weights), 1)
        pairs = {
            row["pair_id"]: row for row in RunDirectory(config.run_dir).read_table("prepared/pairs.parquet").to_pylist()
        }
        whole = [pairs[row["pair_id"]] for row in train_rows]
        assert said["offered"] == {
            "interactions": len({row["interaction_id"] for row in whole}),
            "prompts": len({row["prompt_id"] for row in whole}),
            "pairs": len(whole),
        }


def test_a_smaller_share_offers_fewer_items(config):
    manifests = {manifest.name: manifest for manifest in select.run(with_select(config, curve_shares=[0.5]))}
    ledger = ledger_of(config, "none-share-0.5")
    said = manifests["decisions/none-share-0.5"].statistics["communities"]["There"]["offered"]
    assert said["pairs"] == sum(
        row["kept"] for (name, _), row in ledger.items() if name == "There" and row["split"] == "train"
    )
    assert said["pairs"] < manifests["decisions/none"].statistics["communities"]["There"]["offered"]["pairs"]
    assert manifests["decisions/filter_weight-share-0.5"].statistics["communities"]["There"]["offered"] == said


def test_the_main_strategy_comes_first(config):
    manifests = select.run(config)
    assert [manifest.name for manifest in manifests] == [f"decisions/{name}" for name in ("filter_weight", *CONTROLS)]
    assert select.run(config) == manifests


def test_an_added_control_leaves_the_others(config):
    fewer = with_select(config, controls=["none"])
    first = {manifest.name: manifest for manifest in select.run(fewer)}
    second = {manifest.name: manifest for manifest in select.run(config)}
    assert first.items() <= second.items()


def hashes(config: Config, strategy: str = "filter_weight") -> dict[str, str]:
    manifests: dict[str, Manifest] = {m.name: m for m in select.run(config.model_copy(update={"rebuild": True}))}
    return dict(manifests[f"decisions/{strategy}"].statistics["content_hashes"])


def model_recipe(config: Config, directory: RunDirectory) -> Recipe:
    return recipes.reward_model(config, directory, config.select.arms[0], ModelName("filter_weight", "There"))


def test_equal_steps_follow_the_offered_pairs(config):
    """The arms of a community get the same number of items, whatever they keep; without it, each its own."""
    directory = RunDirectory(config.run_dir)
    equal = Config(**config.model_dump(exclude_unset=True) | {"train": {"equal_steps": True, "batching": "pairs"}})
    manifests = select.run(equal)
    offered = {m.name: m.statistics["communities"]["There"]["offered"]["pairs"] for m in manifests}
    tasks, _ = train.plan(equal, directory)
    assert {task.num_items for name, task in tasks.items()} == set(offered.values()) == {offered["decisions/none"]}
    assert len({task.size for task in tasks.values()}) > 1
    tasks, _ = train.plan(config, directory)
    assert {task.num_items for task in tasks.values()} == {None}


class TestContentHash:
    """Training is run again when, and only when, the pairs that it reads or their weights change."""

    def test_another_threshold_with_the_same_kept_set(self, config):
        before = hashes(config)
        assert hashes(with_select(config, agreement_threshold=0.695)) == before  # between 0.8 (0.690) and 0.9 (0.711)

    @pytest.mark.parametrize("threshold", [0.68, 0.72])
    def test_another_kept_set(self, config, threshold):
        before, after = hashes(config), hashes(with_select(config, agreement_threshold=threshold))
        assert all(before[community] != after[community] for community in before)

    def test_other_weights(self, config):
        for strategy, changes in (("filter_weight", True), ("weight", True), ("filter", False), ("none", False)):
            before = hashes(config, strategy)
            after = hashes(with_select(config, weight_temperature=1.2), strategy)
            assert (before["There"] != after["There"]) is changes

    def test_communities_differ_and_strategies_too(self, config):
        of_strategy = {name: hashes(config, name) for name in EXPECTED}
        assert len({content for found in of_strategy.values() for content in found.values()}) == 2 * len(EXPECTED)

    def test_a_test_pair_alone(self, config):
        """Another decision about a pair that nothing trains on is no reason to train again."""
        before = hashes(config)
        directory = RunDirectory(config.run_dir)
        scores = directory.read_table("scores/scores.parquet")
        pairs = directory.read_table("prepared/pairs.parquet").to_pylist()
        rewards = dict(zip(scores["response_id"].to_pylist(), scores["reward"].to_pylist(), strict=True))
        changed = [pair for pair in pairs if pair["community"] == "There" and pair["split"] == "test"]
        for pair in changed:
            rewards[pair["chosen_id"]] += 5
        column = pa.array([rewards[name] for name in scores["response_id"].to_pylist()], pa.float32())
        with recipes.scores(config, directory).making(directory) as draft:
            draft.write_table("scores.parquet", scores.set_column(2, "reward", column))
        assert len(changed) > 4
        assert hashes(config) == before
        statistics = select.run(config)[0].statistics["communities"]["There"]
        assert statistics["kept_share"]["test"] == 0

    @pytest.mark.parametrize(
        ("changed", "column"),
        [("train", "score_chosen"), ("train", "prompt_id"), ("validation", "score_chosen")],
    )
    def test_what_training_reads_beside_the_weight(self, config, changed, column):
        """Scores make margins, prompts make batches, validation pairs stop early: another value, another training."""
        directory = RunDirectory(config.run_dir)
        pairs, scores = (directory.read_table(name) for name in ("prepared/pairs.parquet", "scores/scores.parquet"))
        arm = config.select.arms[0]

        def decide(pairs: pa.Table):
            return select.decide(pairs, scores, config, arm, majority=select.majority_of(directory))

        def content_hashes(pairs: pa.Table) -> dict:
            ledger, constants = decide(pairs)
            return select.statistics(ledger, pairs, arm, constants)["content_hashes"]

        before = content_hashes(pairs)
        rows = pairs.to_pylist()
        pair = next(
            pair
            for pair, kept in zip(rows, decide(pairs)[0]["kept"], strict=True)
            if pair["community"] == "There" and pair["split"] == changed and (kept.as_py() or changed != "train")
        )
        pair[column] = 90.0 if column.startswith("score") else "another"
        edited = pa.Table.from_pylist(rows, schema=pairs.schema)
        after = content_hashes(edited)
        assert after["There"] != before["There"] and after["Here"] == before["Here"]

    def test_the_recipe_of_a_training_follows_it(self, config):
        directory = RunDirectory(config.run_dir)
        select.run(config)
        first = model_recipe(config, directory)
        same = with_select(config, agreement_threshold=0.695)
        other = with_select(config, agreement_threshold=0.72)
        for changed, is_same in ((same, True), (other, False)):
            select.run(changed.model_copy(update={"rebuild": True}))
            assert (model_recipe(changed, directory) == first) is is_same

    def test_the_plan_counts_what_is_kept(self, config):
        select.run(config)
        tasks, outcome = train.plan(with_select(config), RunDirectory(config.run_dir))
        sizes = {str(name): task.size for name, task in tasks.items()}
        assert not outcome.failed and len(sizes) == len(EXPECTED)
        assert sizes["filter_weight/There"] == sizes["filter/There"] < sizes["none/There"] == sizes["weight/There"]


def test_another_threshold_is_refused_in_the_same_run_directory(config):
    select.run(config)
    with pytest.raises(ArtifactError, match=r"made with select\.agreement_threshold = 0\.7, this config has 0\.6"):
        select.run(with_select(config, agreement_threshold=0.6))


def test_published_agreement(config):
    """`exp_ratio` in float32 is the same number where it does not overflow."""
    before = {key: row["agreement"] for key, row in (select.run(config), ledger_of(config, "filter_weight"))[1].items()}
    select.run(with_select(config, agreement_form="exp_ratio").model_copy(update={"rebuild": True}))
    after = ledger_of(config, "filter_weight")
    assert {key: row["agreement"] for key, row in after.items()} == pytest.approx(before, rel=1e-6)
    assert all(row["agreement"] == float(np.float32(row["agreement"])) for row in after.values())


def test_a_pair_without_scores(config):
    """It stops the stage: the other responses' rewards must not move up."""
    directory = RunDirectory(config.run_dir)
    scores = directory.read_table("scores/scores.parquet")
    with recipes.scores(config, directory).making(directory) as draft:
        draft.write_table("scores.parquet", scores.slice(1))
    with pytest.raises(ValueError, match="1 pairs are not finite"):
        select.run(config)
    assert not Path(config.run_dir, "decisions/filter_weight").exists()
