"""Arms beside the main one: what each trains on, from which ruler, with which seeds."""

from collections import Counter

import numpy as np
import pyarrow.compute as pc
import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.errors import ConfigError
from scpo_ray.records import ALL_COMMUNITIES, ModelName
from scpo_ray.stages import recipes, select, train

MINORITIES = ("Brevia", "Calder Isles")


def ledger(config: Config, arm: str) -> dict[str, dict]:
    rows = RunDirectory(config.run_dir).read_table(f"decisions/{arm}/decisions.parquet").to_pylist()
    return {row["pair_id"]: row for row in rows}


def rewards(config: Config, scores: str) -> dict[str, float]:
    table = RunDirectory(config.run_dir).read_table(f"{scores}/scores.parquet")
    return dict(zip(table["response_id"].to_pylist(), table["reward"].to_pylist(), strict=True))


def test_random_keeps_as_many_as_the_filter_in_every_community_and_split(controlled_run):
    sizes = [
        Counter((row["community"], row["split"]) for row in ledger(controlled_run, arm).values() if row["kept"])
        for arm in ("filter_weight", "random")
    ]
    assert sizes[0] == sizes[1]
    kept = [
        {key for key, row in ledger(controlled_run, arm).items() if row["kept"]} for arm in ("filter_weight", "random")
    ]
    assert kept[0] != kept[1]


def test_the_other_ruler_decides_by_its_own_rewards(controlled_run):
    pairs = RunDirectory(controlled_run.run_dir).read_table("prepared/pairs.parquet").to_pylist()
    own, other = rewards(controlled_run, "scores"), rewards(controlled_run, "other_scores")
    decided = ledger(controlled_run, "other_ruler")
    assert own != other
    for pair in pairs:
        row = decided[pair["pair_id"]]
        assert row["global_reward_chosen"] == other[pair["chosen_id"]]
        gap = np.float64(np.float32(other[pair["chosen_id"]])) - np.float64(np.float32(other[pair["rejected_id"]]))
        assert row["kept"] == (1 / (1 + np.exp(-gap)) < 0.7)
    run = RunDirectory(controlled_run.run_dir)
    manifest = run.find("controls/other_ruler/brevia") or run.find(
        recipes.model_folder(controlled_run, ModelName("other_ruler", "Brevia"))
    )
    assert manifest.inputs["global_model"] == run.find("global_model").content_hash, "but starts from the global model"


def test_shares_are_nested_and_leave_whole_interactions_out(controlled_run):
    pairs = RunDirectory(controlled_run.run_dir).read_table(
        "prepared/pairs.parquet", filters=pc.field("split") == "train"
    )
    interaction = dict(zip(pairs["pair_id"].to_pylist(), pairs["interaction_id"].to_pylist(), strict=True))
    whole, half = (ledger(controlled_run, arm) for arm in ("none", "none-share-0.5"))
    used = {interaction[key] for key in interaction if half[key]["kept"]}
    assert {key for key in interaction if half[key]["kept"]} == {key for key in interaction if interaction[key] in used}
    assert 0.35 < len(used) / len(set(interaction.values())) < 0.65
    assert all(row["kept"] for key, row in half.items() if key not in interaction), "test pairs are never left out"
    assert all(row["kept"] for row in whole.values())
    smaller = select.lots(list(interaction.values()), 0) < 0.25
    assert {name for name, small in zip(interaction.values(), smaller, strict=True) if small} <= used


def test_thresholds_of_the_curve_are_those_of_its_arms(controlled_run):
    for arm, tau in (("filter_weight-tau-0.5", 0.5), ("filter_weight-tau-0.6", 0.6), ("filter_weight", 0.7)):
        assert all(row["kept"] == (row["agreement"] < tau) for row in ledger(controlled_run, arm).values())


def test_every_model_is_there_and_replicates_differ_in_their_seed_alone(controlled_run):
    run = RunDirectory(controlled_run.run_dir)
    trained = train.load_trained(controlled_run, run)
    headline = {
        ModelName(arm, name, n) for arm in controlled_run.select.strategies for name in MINORITIES for n in (0, 1)
    }
    curves = {ModelName(arm.name, name) for arm in controlled_run.select.arms[4:] for name in MINORITIES}
    assert set(trained) == headline | curves
    first, second = trained[ModelName("none", "Brevia")], trained[ModelName("none", "Brevia", 1)]
    assert (first.seed, second.seed) == (0, 1)
    assert first.inputs == second.inputs and first.content_hash != second.content_hash


def test_pooled_figures_are_the_pairs_of_all_communities(controlled_run):
    run = RunDirectory(controlled_run.run_dir)
    metrics = {
        (row["arm"], row["community"], row["metric"]): row
        for row in run.read_table("evaluation/metrics.parquet").to_pylist()
    }
    for arm in ("global", "none", "filter_weight-tau-0.5"):
        parts = [metrics[arm, name, "overall"] for name in MINORITIES]
        pooled = metrics[arm, ALL_COMMUNITIES, "overall"]
        assert pooled["num_pairs"] == sum(part["num_pairs"] for part in parts)
        mean = sum(part["value"] * part["num_pairs"] for part in parts) / pooled["num_pairs"]
        assert pooled["value"] == pytest.approx(mean)
        majority = [metrics[arm, name, "majority"]["value"] for name in MINORITIES]
        assert metrics[arm, ALL_COMMUNITIES, "majority"]["value"] == pytest.approx(sum(majority) / 2)
    assert metrics["none", ALL_COMMUNITIES, "overall"]["num_seeds"] == 2
    assert metrics["none-share-0.5", ALL_COMMUNITIES, "overall"]["num_seeds"] == 1


def test_comparisons_repeat_the_gains_of_the_metrics(controlled_run):
    run = RunDirectory(controlled_run.run_dir)
    gains = {
        (row["arm"], row["community"]): row
        for row in run.read_table("evaluation/metrics.parquet").to_pylist()
        if row["metric"] == "overall_gain" and row["arm"] in controlled_run.select.strategies
    }
    rows = [
        row
        for row in run.read_table("evaluation/comparisons.parquet").to_pylist()
        if (row["against"], row["metric"]) == ("global", "overall")
    ]
    assert {(row["arm"], row["community"]) for row in rows} == set(gains)
    for row in rows:
        gain = gains[row["arm"], row["community"]]
        assert (row["difference"], row["low"], row["high"]) == pytest.approx((gain["value"], gain["low"], gain["high"]))
        assert 0 < row["p_value"] <= row["p_holm"] <= 1


def test_another_ruler_needs_a_global_model_that_is_trained(tmp_path, tiny_reward_model):
    from scpo_ray.stages import prepare, train_global

    config = Config(
        run_dir=str(tmp_path / "run"),
        prepare={"atlas": {"num_prompts": 40, "majority_annotators": 8, "minority_annotators": 4, "num_minorities": 1}},
        train_global={"model": str(tiny_reward_model), "epochs": 0},
        select={"controls": ["other_ruler"]},
    )
    prepare.run(config)
    with pytest.raises(
        ConfigError, match="other_ruler trains a second global model with the next seed, but train_global"
    ):
        train_global.run(config)
    assert RunDirectory(config.run_dir).find("global_model") is None
