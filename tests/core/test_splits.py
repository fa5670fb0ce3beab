"""Splits: deterministic, whole units, fractions held in every community."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.core.splits import SPLITS, assign_splits

FRACTIONS = {"validation_fraction": 0.1, "test_fraction": 0.2}
units = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.tuples(st.sampled_from(["A", "B", "C"]), st.integers(1, 9)),
    min_size=1,
    max_size=60,
)


def _sizes(counts, assigned, community):
    sizes = dict.fromkeys(SPLITS, 0)
    for unit, split in assigned.items():
        sizes[split] += counts[unit].get(community, 0)
    return sizes


@settings(max_examples=100, deadline=None)
@given(units, st.floats(0, 0.45), st.floats(0.01, 0.45))
def test_every_unit_once_and_fractions_within_one_unit(units, validation_fraction, test_fraction):
    counts = {unit: {community: number} for unit, (community, number) in units.items()}
    assigned = assign_splits(counts, validation_fraction=validation_fraction, test_fraction=test_fraction, salt="s")
    assert assigned.keys() == counts.keys()
    fractions = {
        "train": 1 - validation_fraction - test_fraction,
        "validation": validation_fraction,
        "test": test_fraction,
    }
    for community in {community for community, _ in units.values()}:
        numbers = [per.get(community, 0) for per in counts.values()]
        for split, size in _sizes(counts, assigned, community).items():
            assert abs(size - fractions[split] * sum(numbers)) <= max(numbers) + 1e-9
    if validation_fraction == 0:
        assert "validation" not in assigned.values()


@settings(max_examples=50, deadline=None)
@given(units, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(units, random):
    counts = {unit: {community: number} for unit, (community, number) in units.items()}
    shuffled = list(counts.items())
    random.shuffle(shuffled)
    for stratify in (True, False):
        first = assign_splits(counts, **FRACTIONS, salt="s", stratify=stratify)
        assert assign_splits(dict(shuffled), **FRACTIONS, salt="s", stratify=stratify) == first


@pytest.mark.parametrize("stratify", [True, False])
def test_another_salt_is_another_split(stratify):
    counts = {f"annotator-{index}": {"A": 4} for index in range(200)}
    first, second = (assign_splits(counts, **FRACTIONS, salt=salt, stratify=stratify) for salt in ("a", "b"))
    moved = sum(first[unit] != second[unit] for unit in counts)
    assert 0.3 < moved / len(counts) < 0.62  # independent draws differ with 1 - 0.7² - 0.1² - 0.2² = 0.46
    for assigned in (first, second):
        sizes = _sizes(counts, assigned, "A")
        tolerance = 4 if stratify else 80
        assert abs(sizes["train"] - 560) <= tolerance
        assert abs(sizes["test"] - 160) <= tolerance


def test_small_communities_are_held_beside_a_large_one():
    counts = {f"large-{index}": {"Large": 30} for index in range(300)}
    counts |= {f"small-{index}": {"Small": 5} for index in range(10)}
    counts |= {f"both-{index}": {"Small": 1, "Large": 1} for index in range(20)}
    assigned = assign_splits(counts, **FRACTIONS, salt="s")
    small = _sizes(counts, assigned, "Small")
    assert abs(small["test"] - 14) <= 5
    assert abs(small["validation"] - 7) <= 5
    large = _sizes(counts, assigned, "Large")
    assert abs(large["test"] - 0.2 * 9020) <= 30


def test_without_stratification_the_hash_alone_decides():
    counts = {f"annotator-{index}": {"A": 1 + index % 7} for index in range(50)}
    whole = assign_splits(counts, **FRACTIONS, salt="s", stratify=False)
    for unit in counts:
        alone = assign_splits({unit: {"B": 1}}, **FRACTIONS, salt="s", stratify=False)
        assert alone[unit] == whole[unit]


def test_the_split_is_the_same_in_every_release():
    counts = {f"annotator-{index}": {"A": 1} for index in range(12)}
    letters = "".join(assign_splits(counts, **FRACTIONS, salt="0")[unit][1] for unit in counts)
    assert letters == "raeeerrrrrrr"
    letters = "".join(assign_splits(counts, **FRACTIONS, salt="0", stratify=False)[unit][1] for unit in counts)
    assert letters == "rrrrrrrrrarr"
