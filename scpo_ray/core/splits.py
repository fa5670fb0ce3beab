"""Deterministic splits: whole units on one side, every community's fractions held."""

import hashlib
from collections.abc import Mapping

SPLITS = ("train", "validation", "test")


def assign_splits(
    counts: Mapping[str, Mapping[str, int]],
    *,
    validation_fraction: float,
    test_fraction: float,
    salt: str,
    stratify: bool = True,
) -> dict[str, str]:
    """A split for every unit (annotator, prompt group or pair).

    Units are taken in the order of a salted hash, so the result depends on nothing but the ids, the counts and the
    salt. Stratified, each unit goes where its communities lack most pairs (iterative stratification, Sechidis et al.
    2011, with the order fixed by the hash and not by rarity); otherwise its hash alone decides.

    Args:
        counts: unit -> community -> number of pairs.
        validation_fraction: share of each community's pairs, in [0, 1).
        test_fraction: likewise.
        salt: another salt gives another split.
        stratify: hold the fractions within every community.

    Returns:
        unit -> train | validation | test.
    """
    fractions = {
        "train": 1 - validation_fraction - test_fraction,
        "validation": validation_fraction,
        "test": test_fraction,
    }
    ordered = sorted(counts, key=lambda unit: _uniform(salt, unit))
    if not stratify:
        return {unit: _by_hash(_uniform(salt, unit), validation_fraction, test_fraction) for unit in ordered}
    totals: dict[str, int] = {}
    for per_community in counts.values():
        for community, number in per_community.items():
            totals[community] = totals.get(community, 0) + number
    lacking = {
        split: {community: fraction * total for community, total in totals.items()}
        for split, fraction in fractions.items()
    }
    assigned = {}
    for unit in ordered:
        # Shares of the community's pairs, so that a small community counts as much as a large one.
        need = {
            split: sum(
                number * lacking[split][community] / totals[community] for community, number in counts[unit].items()
            )
            for split, fraction in fractions.items()
            if fraction > 0
        }
        best = max(need, key=lambda split: (need[split], -SPLITS.index(split)))
        assigned[unit] = best
        for community, number in counts[unit].items():
            lacking[best][community] -= number
    return assigned


def _uniform(salt: str, unit: str) -> float:
    digest = hashlib.blake2b(f"{salt}\0{unit}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _by_hash(value: float, validation_fraction: float, test_fraction: float) -> str:
    if value < test_fraction:
        return "test"
    return "validation" if value < test_fraction + validation_fraction else "train"
