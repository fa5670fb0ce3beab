"""What the report says of a world in which it is known which communities differ from the majority, and by how much."""

from html import unescape
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.reporting.page import Page
from scpo_ray.stages import pipeline
from scpo_ray.stages.report import gather

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ALIKE, LITTLE, MUCH, FEW, LONE = "Brevia", "Calder Isles", "Dorvia", "Østmark", "Fenland"
TURNED = (0, 1, 3, 3, 3)
ANNOTATORS = (40, 40, 40, 8, 2)


@pytest.fixture(scope="module")
def config(ray_cluster, tmp_path_factory) -> Config:
    config = Config(
        run_dir=str(tmp_path_factory.mktemp("planted") / "run"),
        prepare={
            "atlas": {
                "majority_annotators": 80,
                "minority_annotators": ANNOTATORS,
                "num_minorities": len(TURNED),
                "turned_attributes": TURNED,
                "interactions_per_annotator": 10,
                "outlier_rate": 0.0,
            },
            "test_fraction": 0.4,
        },
        format={"max_tokens": 96},
        train_global={"epochs": 5, "learning_rate": 1e-3},
        train={"epochs": 8, "learning_rate": 3e-4},  # after 2 the community that differs most has learned a fifth of it
        evaluate={"num_resamples": 1000},
    )
    pipeline.run(config)
    return config


@pytest.fixture(scope="module")
def page(config) -> Page:
    return gather(config)


@pytest.fixture(scope="module")
def html(config) -> str:
    return unescape(Path(config.run_dir, "report.html").read_text(encoding="utf-8"))


def test_the_planted_distances_are_those_of_the_labels(config, page):
    """By another way: how many labels of the test pairs contradict the majority's utility."""
    run = RunDirectory(config.run_dir)
    pairs = run.read_table("prepared/pairs.parquet", filters=pc.field("split") == "test").to_pandas()
    truth = run.read_table("prepared/pair_truth.parquet").to_pandas().set_index("pair_id")
    gap = truth.loc[pairs.pair_id, "majority_utility_gap"].to_numpy()
    agrees = np.where(gap == 0, 0.5, gap > 0)
    shares = {name: agrees[(pairs.community == name).to_numpy()].mean() for name in pairs.community.unique()}
    expected = {name: shares["Atlas"] - share for name, share in shares.items() if name != "Atlas"}
    assert page.evidence.planted_distances == pytest.approx(expected)
    assert abs(expected[ALIKE]) < 0.03 < expected[LITTLE] < expected[MUCH]


def test_the_report_names_the_communities_that_differ_and_no_other(page, html):
    distance = {row["community"]: row for row in page.evidence.distances}
    assert distance[ALIKE]["low"] <= 0 <= distance[ALIKE]["high"]
    assert distance[LITTLE]["low"] > 0 and distance[MUCH]["low"] > 0
    assert distance[LITTLE]["high"] < distance[MUCH]["low"], "by how much is told apart too"
    words = page.evidence.distance_words
    assert words in html
    differing = words.split("test pairs: ")[1].split(". ")[0]
    assert MUCH in differing and LITTLE in differing and ALIKE not in differing
    assert ALIKE in words.split("No difference is shown for ")[1].split("(interval")[0]


def test_distances_are_as_large_as_planted(config, page):
    """A ruler that is right about the majority in a share q of pairs shows (2q - 1) of a planted distance."""
    run = RunDirectory(config.run_dir)
    rewards = run.read_table(
        "evaluation/rewards.parquet", filters=(pc.field("model") == "global") & (pc.field("community") == "Atlas")
    ).to_pandas()
    truth = run.read_table("prepared/pair_truth.parquet").to_pandas().set_index("pair_id")
    gap = truth.loc[rewards.pair_id, "majority_utility_gap"].to_numpy()
    margin = (rewards.reward_chosen - rewards.reward_rejected).to_numpy()
    is_right = (np.sign(margin) == np.sign(gap))[gap != 0].mean()
    assert is_right > 0.8, "the ruler has learned the majority"
    for row in page.evidence.distances:
        if row["community"] in (ALIKE, LITTLE, MUCH):
            expected = (2 * is_right - 1) * page.evidence.planted_distances[row["community"]]
            assert row["low"] <= expected <= row["high"]


def test_gains_follow_what_was_planted(page):
    gain = {result.community: result.of("overall_gain") for result in page.main_results}
    planted = page.evidence.planted_distances
    assert gain[ALIKE].low <= 0, "no gain is claimed where nothing differs"
    assert gain[LITTLE].low > 0 and gain[LITTLE].high < gain[MUCH].low, "where more differs there is more to learn"
    for community in (LITTLE, MUCH):
        assert planted[community] / 2 < gain[community].value < planted[community], "and no more than was planted"


def test_warnings_fire_for_the_communities_made_too_small(page, html):
    sizes = {result.community: result.of("overall").num_clusters for result in page.main_results}
    assert sizes[LONE] == 1 and 1 < sizes[FEW] < 10 <= min(sizes[ALIKE], sizes[MUCH])
    assert f"No interval for {LONE}: test pairs of fewer than two annotators or prompts." in html
    few = html.split("Fewer than 10 clusters behind the intervals of ")[1].split(":")[0]
    assert few == f"{FEW} ({sizes[FEW]} annotators)"
    assert f"Nothing can be said of {LONE} (no interval)." in html
