"""Communities beside each other."""

import math

import numpy as np
import pyarrow as pa

from scpo_ray.config import EvaluateConfig
from scpo_ray.evaluation.matrices import community_structure, transfer_rows
from tests.evaluation.pair_sets import pair_set, rewards_with, scores_of

CONFIG = EvaluateConfig(num_resamples=100, num_label_permutations=50)


def votes(rows) -> pa.Table:
    """Rows of (community, annotator, chosen, rejected)."""
    names = ("community", "annotator_id", "chosen_id", "rejected_id")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])


def test_transfer_is_every_model_on_every_community():
    test = {"A": pair_set((1.0, 1.0), name="A"), "B": pair_set((1.0, -1.0), name="B")}
    models = {"global": test["A"].global_scores, "A": scores_of(rewards_with((-1.0, 1.0)))}
    found = {(row["model"], row["community"]): row["value"] for row in transfer_rows(models, test, CONFIG, seed=0)}
    assert found == {("global", "A"): 1.0, ("global", "B"): 1.0, ("A", "A"): 0.5, ("A", "B"): 0.5}


def test_the_order_of_chosen_and_rejected_is_the_vote():
    """A and B both voted on {x, y}, for opposite responses; on {x, z} alike."""
    table = votes([("A", "1", "x", "y"), ("B", "2", "y", "x"), ("A", "1", "z", "x"), ("B", "2", "z", "x")])
    structure, _ = community_structure(table, ["A", "B"], CONFIG, seed=0)
    assert structure["agreement"] == [[None, 0.5], [0.5, None]]
    assert structure["shared_pairs"] == [[0, 2], [2, 0]]
    assert structure["has_annotators"]


def test_aggregates_say_nothing_about_variance_within():
    table = votes([("A", None, "x", "y"), ("B", None, "y", "x")])
    structure, variance = community_structure(table, ["A", "B"], CONFIG, seed=0)
    assert not structure["has_annotators"]
    assert math.isnan(variance.within) and math.isnan(variance.p_value)


def test_communities_that_differ_explain_variance():
    random = np.random.default_rng(0)
    rows = [
        (name, f"{name}{rater}", *(("x", "y") if random.random() < chance else ("y", "x")))
        for name, chance in (("A", 0.9), ("B", 0.1))
        for rater in range(40)
    ]
    rows = [
        (name, rater, f"{chosen}{item}", f"{rejected}{item}")
        for item in range(3)
        for name, rater, chosen, rejected in rows
    ]
    _, variance = community_structure(votes(rows), ["A", "B"], CONFIG, seed=0)
    assert variance.share > 0.5
    assert variance.p_value <= 0.05
    restarted = [(name, rater.removeprefix(name), chosen, rejected) for name, rater, chosen, rejected in rows]
    _, same = community_structure(votes(restarted), ["A", "B"], CONFIG, seed=0)
    assert same == variance, "numbers that start again in every community are other annotators"
