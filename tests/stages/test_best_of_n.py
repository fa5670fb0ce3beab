"""The baseline without training: what it chooses is what its reward model likes, and it is no worse by that."""

import math

import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.stages import best_of_n, ppo
from tests.stages.policy_runs import FIRST, SECOND


def rows(config) -> dict[tuple[str, str, int], dict]:
    table = RunDirectory(config.run_dir).read_table("best_of_n/best_of_n.parquet").to_pylist()
    return {(row["community"], row["kind"], row["n"]): row for row in table}


@pytest.fixture(scope="module")
def config(policy_run):
    best_of_n.run(policy_run)
    return policy_run


def test_more_to_choose_from_is_better_by_the_judge_that_chooses(config):
    found = rows(config)
    for community in (FIRST, SECOND):
        one, four = found[community, "proxy", 1], found[community, "proxy", 4]
        assert one["gain"] == pytest.approx(0.0, abs=1e-9)
        assert four["gain"] > 0.5
        assert four["low"] > 0
        assert four["mean"] == pytest.approx(one["mean"] + four["gain"])
    kinds = {(community, kind) for community, kind, _ in found}
    assert kinds == {(community, kind) for community in (FIRST, SECOND) for kind in ("proxy", "held out", "truth")}


def test_what_was_made_is_found(config, monkeypatch):
    monkeypatch.setattr(best_of_n, "at_work", None)
    assert best_of_n.run(config).statistics["num_samples"] == 4


def test_the_summary_and_the_page_show_it(config):
    text = best_of_n.summary(config)
    four = rows(config)[FIRST, "truth", 4]
    assert f"{FIRST}, truth: best of 4 gains {four['gain']:+.2f}" in text
    assert f"at most {math.log(4) - 3 / 4:.2f} nats away" in text
    ppo.run(config)
    assert "Best of n" in RunDirectory(config.run_dir).read_text("ppo.html")
