"""Groups of prompts that say nearly the same."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.core import near_duplicates
from scpo_ray.core.near_duplicates import near_duplicate_groups
from tests import reference

words = st.sampled_from(["the", "The", "boat", "fix", "paint", "école", "3", "?", "!", "a-b", "snake_case"])
texts = st.lists(st.lists(words, max_size=5).map(" ".join), max_size=14)


@settings(max_examples=100, deadline=None)
@given(texts, st.sampled_from([0.3, 0.5, 0.7, 0.85, 1.0]))
def test_groups_match_reference(texts, similarity):
    assert near_duplicate_groups(texts, similarity=similarity) == reference.near_duplicate_groups(texts, similarity)


@settings(max_examples=30, deadline=None)
@given(texts)
def test_blocks_of_the_product_change_nothing(texts):
    whole = near_duplicate_groups(texts, similarity=0.6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_ROWS_PER_PRODUCT", 3)
        patch.setattr(near_duplicates, "_PAIRS_PER_CHECK", 2)
        assert near_duplicate_groups(texts, similarity=0.6) == whole


def test_most_pairs_are_never_looked_at():
    draw = np.random.default_rng(5)
    vocabulary = [f"word{number}" for number in range(5000)]
    prompts = [" ".join(draw.choice(vocabulary, size=12, p=_zipf(5000))) for _ in range(2000)]
    # 25 grams of 27 in common at most: cosine 0.94 and above.
    prompts += [f"{prompt} please" for prompt in prompts[:50]]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates.csr_matrix, "multiply", _counting(near_duplicates.csr_matrix.multiply, seen))
        groups = near_duplicate_groups(prompts, similarity=0.85)
    assert groups[2000:] == groups[:50]
    assert len(set(groups)) == 2000
    assert sum(seen) < 0.01 * len(prompts) ** 2 / 2


def _zipf(size: int) -> np.ndarray:
    weights = 1 / np.arange(1, size + 1)
    return weights / weights.sum()


def _counting(multiply, seen):
    def counted(self, other):
        seen.append(self.shape[0])
        return multiply(self, other)

    return counted


def test_cosine_by_hand():
    # "a b c": a, b, c, "a b", "b c"; "a b d": a, b, d, "a b", "b d". Three grams shared of five: cosine 3/5.
    pair = ["a b c", "a b d"]
    assert near_duplicate_groups(pair, similarity=0.6) == [0, 0]
    assert near_duplicate_groups(pair, similarity=0.601) == [0, 1]
    # "a": 1 gram; "a a": a twice and "a a" once: cosine 2/√5.
    twice = ["a", "a a"]
    assert near_duplicate_groups(twice, similarity=2 / math.sqrt(5)) == [0, 0]
    assert near_duplicate_groups(twice, similarity=2 / math.sqrt(5) + 1e-6) == [0, 1]


def test_chains_join():
    # Neighbours share 0.6, the ends share "b" alone: 1/5.
    chain = ["a b c", "a b d", "x b d"]
    assert reference.cosine(reference._ngrams(chain[0]), reference._ngrams(chain[2])) == pytest.approx(0.2)
    assert near_duplicate_groups(chain, similarity=0.6) == [0, 0, 0]
    assert near_duplicate_groups([chain[0], chain[2]], similarity=0.6) == [0, 1]


def test_texts_without_words_stand_alone():
    assert near_duplicate_groups([], similarity=0.85) == []
    assert near_duplicate_groups(["?", "?", ""], similarity=0.85) == [0, 1, 2]
    assert near_duplicate_groups(["?", "boat", "?", "Boat!"], similarity=0.85) == [0, 1, 2, 1]
