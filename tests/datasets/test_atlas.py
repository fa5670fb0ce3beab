"""The synthetic world: the same for a seed, and true to what it says about itself."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest

from scpo_ray.config import AtlasConfig
from scpo_ray.datasets import atlas
from scpo_ray.datasets.atlas import ATTRIBUTES, MAJORITY, MARKERS, MINORITIES, attributes, read, world
from scpo_ray.records import ATLAS_PAIR_TRUTH, PAIRS, RESPONSES

CONFIG = AtlasConfig(
    num_prompts=40,
    majority_annotators=12,
    minority_annotators=10,
    interactions_per_annotator=10,
    num_minorities=4,
    noise_rate=0.1,
    outlier_rate=0.3,
)
SEED = 5


@pytest.fixture(scope="module")
def dataset():
    return read(CONFIG, seed=SEED, min_score_gap=0.0)


@pytest.fixture(scope="module")
def joined(dataset):
    """Every pair with its truth and its texts."""
    truth = {row["pair_id"]: row for row in dataset.pair_truth.to_pylist()}
    texts = {row["response_id"]: row["response"] for row in dataset.responses.to_pylist()}
    return [
        {**pair, **truth[pair["pair_id"]], "chosen": texts[pair["chosen_id"]], "rejected": texts[pair["rejected_id"]]}
        for pair in dataset.pairs.to_pylist()
    ]


def _utility(text, community):
    """u_c from exact sentences and the world's preferences."""
    sentences = text.removesuffix(" .").split(" . ")
    total = 0.0
    for preference, (shown, opposite) in zip(
        world(CONFIG, seed=SEED).preferences[community], MARKERS.values(), strict=True
    ):
        total += preference * ((any(s in shown for s in sentences)) - (any(s in opposite for s in sentences)))
    return total


def test_a_seed_decides_everything(dataset):
    again, other = (read(CONFIG, seed=seed, min_score_gap=0.0) for seed in (SEED, SEED + 1))
    for name in ("responses", "pairs", "pair_truth"):
        assert getattr(again, name) == getattr(dataset, name)
        assert getattr(other, name) != getattr(dataset, name)


def test_global_randomness_is_neither_used_nor_touched(dataset):
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    assert read(CONFIG, seed=SEED, min_score_gap=0.0).pairs == dataset.pairs
    assert np.random.get_state()[1].tolist() == before


def test_tables_have_their_schemas_and_unique_ids(dataset):
    assert dataset.responses.schema == RESPONSES
    assert dataset.pairs.schema == PAIRS
    assert dataset.pair_truth.schema == ATLAS_PAIR_TRUTH
    pair_ids = dataset.pairs["pair_id"].to_pylist()
    assert len(set(pair_ids)) == len(pair_ids)
    assert sorted(pair_ids) == sorted(dataset.pair_truth["pair_id"].to_pylist())
    response_ids = dataset.responses["response_id"].to_pylist()
    assert len(set(response_ids)) == len(response_ids)
    used = {*dataset.pairs["chosen_id"].to_pylist(), *dataset.pairs["rejected_id"].to_pylist()}
    assert used <= set(response_ids)


@pytest.mark.parametrize("min_score_gap", [0.0, 10.0])
def test_the_rows_add_up(min_score_gap):
    dataset = read(CONFIG, seed=SEED, min_score_gap=min_score_gap)
    ledger = dataset.ledger
    ledger.check(0.0)
    num_interactions = (12 + 4 * 10) * 10
    assert ledger.rows_read == ledger.rows_used == ledger.responses_mentioned == num_interactions * 4
    assert ledger.responses == dataset.responses.num_rows
    assert ledger.merged_duplicates == ledger.rows_used - dataset.responses.num_rows
    assert dataset.pairs.num_rows + ledger.excluded["ties (pairs)"] == num_interactions * 6
    assert ledger.excluded["ties (pairs)"] > 0
    gaps = np.array(dataset.pairs["score_chosen"]) - np.array(dataset.pairs["score_rejected"])
    assert gaps.min() > min_score_gap


def test_annotators_and_interactions(joined):
    annotators = defaultdict(set)
    interactions = defaultdict(set)
    for pair in joined:
        annotators[pair["community"]].add(pair["annotator_id"])
        interactions[pair["annotator_id"]].add(pair["interaction_id"])
    assert {community: len(found) for community, found in annotators.items()} == {
        MAJORITY: 12,
        **dict.fromkeys(MINORITIES[:4], 10),
    }
    assert len(set().union(*annotators.values())) == 52
    assert max(len(found) for found in interactions.values()) == 10
    for pair in joined:
        assert 1 <= pair["score_rejected"] < pair["score_chosen"] <= 100


def test_every_truth_follows_from_the_texts(joined):
    for pair in joined:
        gap = _utility(pair["chosen"], pair["community"]) - _utility(pair["rejected"], pair["community"])
        majority_gap = _utility(pair["chosen"], MAJORITY) - _utility(pair["rejected"], MAJORITY)
        assert pair["utility_gap"] == pytest.approx(gap, abs=1e-9)
        assert pair["majority_utility_gap"] == pytest.approx(majority_gap, abs=1e-9)


def test_every_kind_is_consistent_with_the_utilities(joined):
    kinds = Counter(pair["kind"] for pair in joined)
    assert set(kinds) == {"agreement", "culture", "noise", "outlier"}
    for pair in joined:
        gap, majority_gap = pair["utility_gap"], pair["majority_utility_gap"]
        expected = {
            "agreement": gap > 0 and majority_gap > 0,
            "culture": gap > 0 and majority_gap <= 0,
            "noise": gap <= 0,
            "outlier": gap <= 0 and majority_gap <= 0,
        }
        assert expected[pair["kind"]], pair
    majority = Counter(pair["kind"] for pair in joined if pair["community"] == MAJORITY)
    assert set(majority) == {"agreement", "noise"}
    assert kinds["culture"] > 0.1 * len(joined)


def test_outliers_reverse_what_both_communities_prefer(joined):
    by_interaction = defaultdict(list)
    for pair in joined:
        by_interaction[pair["interaction_id"]].append(pair)
    planted = [pairs for pairs in by_interaction.values() if any(pair["kind"] == "outlier" for pair in pairs)]
    assert len(planted) / 400 == pytest.approx(0.3, abs=0.08)  # outlier_rate of the minorities' interactions
    for pair in itertools.chain.from_iterable(planted):
        assert pair["utility_gap"] + pair["majority_utility_gap"] < 0
    gaps = [pair["utility_gap"] for pair in joined if pair["kind"] == "outlier"]
    noise = [pair["utility_gap"] for pair in joined if pair["kind"] == "noise"]
    assert np.mean(gaps) < 1.3 * np.mean(noise)


def test_without_planted_faults_raters_follow_their_community():
    clean = read(CONFIG.model_copy(update={"noise_rate": 0.0, "outlier_rate": 0.0}), seed=SEED, min_score_gap=0.0)
    kinds = Counter(clean.pair_truth["kind"].to_pylist())
    assert "outlier" not in kinds
    assert kinds["noise"] < 0.12 * clean.pairs.num_rows
    wrong = [row["utility_gap"] for row in clean.pair_truth.to_pylist() if row["kind"] == "noise"]
    assert min(wrong) > -1.8  # taste and rating noise alone turn only small gaps


def test_attributes_recover_the_drawn_markers(dataset):
    found = set()
    for text in dataset.responses["response"].to_pylist():
        sentences = text.removesuffix(" .").split(" . ")
        drawn = [
            sum(sentence in shown for sentence in sentences) - sum(sentence in opposite for sentence in sentences)
            for shown, opposite in MARKERS.values()
        ]
        assert attributes(text).tolist() == drawn
        assert attributes(text.upper()).tolist() == drawn
        advice = len(sentences) - int(np.abs(drawn).sum())
        assert advice == 1
        found.update(enumerate(drawn))
    assert found == set(itertools.product(range(len(ATTRIBUTES)), (-1, 0, 1)))


def test_attributes_by_hand():
    text = "Hey there, just start now. I am certain; without any doubt."
    assert attributes(text).tolist() == [1, -1, -1, 0, 0, 0]
    assert attributes("perhaps i am wrong . i am certain .").tolist() == [0] * 6
    assert attributes("").tolist() == [0] * 6


def test_no_marker_holds_another():
    phrases = [phrase for sides in MARKERS.values() for side in sides for phrase in side]
    assert len(set(phrases)) == len(phrases)
    assert not [pair for pair in itertools.permutations(phrases, 2) if pair[0] in pair[1]]


@pytest.mark.parametrize("seed", range(8))
def test_communities_differ_exactly_in_their_turned_attributes(seed):
    truth = world(AtlasConfig(num_minorities=6), seed=seed)
    assert truth.minorities == list(MINORITIES)
    majority = truth.preferences[MAJORITY]
    assert truth.turned_attributes(MAJORITY) == []
    for community in truth.minorities:
        turned = truth.turned_attributes(community)
        assert len(turned) == 2
        signs = np.array([-1.0 if attribute in turned else 1.0 for attribute in ATTRIBUTES])
        np.testing.assert_array_equal(truth.preferences[community], signs * majority)
        shown = " . ".join(MARKERS[attribute][0][0] for attribute in turned)
        assert truth.utility(shown, community) == pytest.approx(-truth.utility(shown, MAJORITY))


def test_prompts_are_distinct_and_capped_by_the_grammar():
    prompts = atlas._prompts(2000, np.random.default_rng(0))
    questions = [question for question, _, _ in prompts]
    assert len(set(questions)) == len(questions) == 900
    assert all(verb in question and thing in question for question, verb, thing in prompts)
