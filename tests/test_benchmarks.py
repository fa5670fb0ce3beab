"""What benchmarks make of what they measure, and the data that they make: worked by hand, and as published."""

import json
import os
from collections import Counter

import numpy as np
import pytest

from benchmarks import pairs, prism
from benchmarks.performance import aims
from benchmarks.performance.batches import rectangles
from benchmarks.performance.communities import overheads
from benchmarks.performance.communities import table as table_of_communities
from benchmarks.performance.composition import beside
from benchmarks.performance.rounds import Comparison, Measured, commit, page
from scpo_ray.artifacts import RunDirectory
from scpo_ray.formatting import TokenSequence
from scpo_ray.packing import tokens_per_pass


def rounds_of(*rates: float) -> list[Measured]:
    return [Measured(rate * seconds, seconds) for seconds, rate in enumerate(rates, start=1)]


class TestRatios:
    COMPARISON = Comparison(
        "A title",
        "a command",
        "tokens",
        "Work.",
        rounds={"first": rounds_of(100, 200, 400), "second, bfloat16": rounds_of(300, 100, 320)},
        notes={"first": "slow"},
        flops=2.0,
        peaks={"float32": 1000.0, "bfloat16": 2400.0},
    )

    def test_they_are_medians_of_the_rounds_own_and_shares_of_the_precisions_peak(self):
        _, _, first, second = self.COMPARISON.table().splitlines()
        assert first == "| first | 200 | 1.00 | 40% | slow |"
        assert second == "| second, bfloat16 | 300 | 0.80 (0.50 to 3.00) | 25% |  |"  # medians' own ratio would be 1.5

    def test_a_kept_file_makes_the_same_table(self, tmp_path):
        self.COMPARISON.write(tmp_path / "kept.json")
        text = page([tmp_path / "kept.json"])
        assert self.COMPARISON.table() in text
        assert "\n\n    a command\n\n" in text
        assert "Medians of 3 rounds" in text
        assert (f", commit {commit()}, " in text) == bool(commit())  # of a repository

    def test_an_aim_is_beside_the_fastest_and_marked_where_it_is_missed(self):
        kept = {
            "scoring_minilm_votes": {
                "scpo_ray": [90.0, 80.0, 100.0],
                "ceiling": [50.0, 50.0, 50.0],
                "ceiling, two passes": [100.0, 100.0, 100.0],
                "scpo_ray, bfloat16": [160.0, 200.0, 180.0],
                "ceiling, bfloat16": [200.0, 400.0, 200.0],
                "as published": [10.0, 20.0, 30.0],
            }
        }
        _, _, ceiling, published = aims.table(kept).splitlines()
        assert ceiling == (
            "| scoring: 0.85 of the bare forward pass | MiniLM, votes | 3 | 0.90 (0.80 to 1.00) | "
            "0.80 (0.50 to 0.90) †, **missed** |"
        )
        assert published == (
            "| scoring: 6 times the published way | MiniLM, votes | 3 | 4.0 (3.3 to 9.0), **missed** | 10.0 (6.0 to 16.0) |"
        )


def test_a_difference_between_ways_is_as_uncertain_as_prompts_and_seeds_are():
    ours = np.array([[1, 1, 1, 0], [1, 0, 0, 1]])
    other = np.array([[0, 0, 1, 0], [1, 0, 0, 1]])
    found = beside(ours, other, ["one", "one", "another", "another"])
    assert found.accuracy == 0.25
    assert found.error**2 == pytest.approx(1 / 16 + 1 / 16)  # prompts: sums of ±1/2; seeds: means of 1/2 and 0


def of(ids: list[int]) -> TokenSequence:
    return TokenSequence(ids, None, truncated=False)


class TestRectangles:
    def test_they_are_full_and_have_as_many_tokens_as_the_sequences(self):
        random = np.random.default_rng(0)
        lengths = random.integers(3, 200, size=101)
        sequences = [of(list(range(1, size + 1))) for size in lengths]
        batches = list(rectangles(sequences, tokens=1000))
        assert sum(len(batch) for batch in batches) == 101
        assert all(int(batch.min()) > 0 for batch in batches)  # nothing that pads
        assert abs(sum(batch.numel() for batch in batches) / lengths.sum() - 1) < 0.01

    def test_short_ones_begin_once_more(self):
        sequences = [of([1, 2, 3, 4, 5, 6]), of([7, 8])]
        (batch,) = rectangles(sequences, tokens=8)
        assert batch.tolist() == [[1, 2, 3, 4], [7, 8, 7, 8]]


@pytest.fixture(scope="module")
def utterances(tmp_path_factory) -> list[dict]:
    place = tmp_path_factory.mktemp("prism")
    prism.write_prism(place, 3000)
    return [json.loads(line) for line in (place / "utterances.jsonl").open()]


class TestPrism:
    def test_turns_are_as_published(self, utterances):
        """27,172 interactions in 8,011 conversations; `turn` is 1.2 in the mean over responses, to its digits."""
        interactions = {one["interaction_id"]: one for one in utterances}
        conversations = {one["conversation_id"] for one in utterances}
        assert len(interactions) / len(conversations) == pytest.approx(27_172 / 8_011, rel=0.02)
        assert np.mean([one["turn"] for one in utterances]) == pytest.approx(1.2, abs=0.05)
        numbers = Counter(one["interaction_id"] for one in utterances)
        assert {(one["turn"] == 0, numbers[name]) for name, one in interactions.items()} == {(True, 4), (False, 2)}

    def test_texts_and_scores_are_as_published(self, utterances):
        """Means and deviations of the codebook."""
        prompts = [len(text) for text in {one["interaction_id"]: one["user_prompt"] for one in utterances}.values()]
        responses = [len(one["model_response"]) for one in utterances]
        scores = [one["score"] for one in utterances]
        for found, mean, deviation, most in ((prompts, 69.9, 62.0, 1311), (responses, 565.3, 387.9, 4630)):
            assert np.mean(found) == pytest.approx(mean, rel=0.03)
            assert np.std(found) == pytest.approx(deviation, rel=0.05)
            assert max(found) <= most
        assert (np.mean(scores), np.std(scores)) == (pytest.approx(65.1, abs=0.5), pytest.approx(29.3, abs=0.5))

    def test_the_chosen_response_has_the_highest_score(self, utterances):
        best = {}
        for one in utterances:
            best[one["interaction_id"]] = max(best.get(one["interaction_id"], 0), one["score"])
        chosen = [one for one in utterances if one["if_chosen"]]
        assert len(chosen) == len(best)
        assert all(one["score"] == best[one["interaction_id"]] for one in chosen)


def test_a_community_costs_what_lies_between_models_beside_its_steps(tmp_path):
    for name, steps, made in (("b", 4.0, 1010.0), ("a", 3.0, 1014.5), ("c", 2.0, 1017.0)):
        folder = tmp_path / "reward_models" / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"wall_time_s": steps}))
        (folder / "manifest.json").write_text("{}")
        os.utime(folder / "manifest.json", (made, made))
    found = overheads(RunDirectory(str(tmp_path)), 1000.0)
    assert found == {"b": (4.0, 6.0), "a": (3.0, 1.5), "c": (2.0, 0.5)}
    assert table_of_communities(list(found.values())).splitlines()[2:] == [
        "| 1 | 10.0 | 4.0 | 6.00 |",
        "| 2 | 14.5 | 7.0 | 1.50 |",
        "| 3 | 17.0 | 9.0 | 0.50 |",
    ]


def test_pairs_are_shown_with_the_medians_of_their_rounds():
    def one(seconds: float, gib: float) -> dict:
        stage = {"seconds": seconds, "gib": gib, "resident_gib": 2 * gib}
        return {"pairs": 1000, "responses": 900, "prepare": stage, "select": stage, "evaluate": stage | {"gib": 0.5}}

    row = pairs.table([[one(1.0, 1.0), one(3.0, 2.0), one(2.0, 0.25)]]).splitlines()[-1]
    each = "2.0 | 1.00 | 2.0 | 1.00 | 2.0 | 0.50"
    assert row == f"| 1,000 | 900 | {each} | 6.0 (3.0 to 9.0) | 1.00 | 2.00 |"


@pytest.mark.parametrize(("intermediate_size", "expected"), [(1536, 4096), (512, 12_288), (3072, 2048), (14_336, 2048)])
def test_a_pass_of_training_holds_24_mib_of_the_inner_values_or_2048_tokens(intermediate_size, expected):
    assert tokens_per_pass(intermediate_size) == expected
