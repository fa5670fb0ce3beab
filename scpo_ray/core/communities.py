"""Do communities differ at all? Agreement between them on shared pairs, and the variance that they explain.

An item is an unordered pair of responses; a vote says which of the two an annotator prefers. Where a source has no
annotators (country aggregates), each community casts one vote per item, and nothing can be said of variance within.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray


@dataclass(frozen=True)
class Votes:
    """One row per vote; codes count from 0."""

    item: Int[Array, " votes"]
    community: Int[Array, " votes"]
    annotator: Int[Array, " votes"]
    prefers_first: Float[Array, " votes"]
    """1 or 0."""

    def __post_init__(self) -> None:
        sizes = {len(self.item), len(self.community), len(self.annotator), len(self.prefers_first)}
        if len(sizes) > 1:
            raise ValueError(f"columns of different lengths: {sorted(sizes)}")


@dataclass(frozen=True)
class CommunityVariance:
    """How much of the votes' variance on an item is between communities."""

    between: float
    """Variance component between communities, squared votes; an unbiased estimate may be negative."""
    within: float
    """Between annotators of one community, squared votes."""
    p_value: float
    """Of "the community does not matter": annotators' communities exchanged at random."""
    num_votes: int
    num_items: int

    @property
    def share(self) -> float:
        """between / (between + within); NaN where votes do not vary."""
        total = self.between + self.within
        return self.between / total if total else float("nan")


def agreement_matrix(
    votes: Votes, *, num_communities: int
) -> tuple[Float[Array, "communities communities"], Int[Array, "communities communities"]]:
    """Chance that a voter of one community and another voter of the other prefer the same response, and shared items.

    The mean over items that both have voted on of s_a s_b + (1 - s_a)(1 - s_b), s the share of votes for the first
    response; on the diagonal two different votes of the same community. NaN where nothing is shared.
    """
    num_items = int(votes.item.max()) + 1 if len(votes.item) else 0
    cell = votes.item * num_communities + votes.community
    shape = (num_items, num_communities)
    counts = np.bincount(cell, minlength=num_items * num_communities).reshape(shape).astype(np.float64)
    firsts = np.bincount(cell, weights=votes.prefers_first, minlength=num_items * num_communities).reshape(shape)
    present = counts > 0
    share = np.divide(firsts, counts, out=np.zeros(shape), where=present)
    other = np.where(present, 1 - share, 0.0)
    shared = present.T.astype(np.float64) @ present
    alike = share.T @ share + other.T @ other
    several = counts > 1
    twice = firsts * (firsts - 1) + (counts - firsts) * (counts - firsts - 1)
    within = np.divide(twice, counts * (counts - 1), out=np.zeros(shape), where=several)
    np.fill_diagonal(shared, several.sum(axis=0))
    np.fill_diagonal(alike, within.sum(axis=0))
    matrix: Array = np.divide(alike, shared, out=np.full(shared.shape, np.nan), where=shared > 0)
    return matrix, shared.astype(np.int64)


def community_variance(votes: Votes, *, num_permutations: int, seed: int) -> CommunityVariance:
    """One-way random-effects analysis of variance within items, and a permutation test of its F ratio.

        within  = Σ_ic Σ_v (y_icv - ȳ_ic)² / Σ_ic (n_ic - 1)
        between = (MSB - within) / n₀,   MSB = Σ_ic n_ic (ȳ_ic - ȳ_i)² / Σ_i (C_i - 1)

    with n₀ the usual mean group size for unequal groups. Items that one community alone voted on say nothing about
    differences and are left out. Annotators, not votes, are exchanged: all votes of one move together. NaN where no
    item has votes of two communities, or no community two votes on an item.

    Source: Searle, Casella & McCulloch (1992), unbalanced one-way random model.
    """
    usable = _of_shared_items(votes)
    if not len(usable.item):
        return CommunityVariance(float("nan"), float("nan"), float("nan"), 0, 0)
    _, item = np.unique(usable.item, return_inverse=True)
    _, annotator = np.unique(usable.annotator, return_inverse=True)
    num_communities = int(usable.community.max()) + 1
    label = np.zeros(int(annotator.max()) + 1, dtype=np.int64)
    label[annotator] = usable.community
    between, within, ratio = _components(item, label[annotator], usable.prefers_first, num_communities)
    random = np.random.default_rng(seed)
    reached = sum(
        _components(item, random.permutation(label)[annotator], usable.prefers_first, num_communities)[2] >= ratio
        for _ in range(num_permutations)
    )
    p_value = (reached + 1) / (num_permutations + 1) if np.isfinite(ratio) else float("nan")
    return CommunityVariance(between, within, p_value, len(item), int(item.max()) + 1)


def _of_shared_items(votes: Votes) -> Votes:
    cells = np.unique(np.stack([votes.item, votes.community], axis=1), axis=0)
    items, num_communities = np.unique(cells[:, 0], return_counts=True)
    keep = np.isin(votes.item, items[num_communities > 1])
    return Votes(votes.item[keep], votes.community[keep], votes.annotator[keep], votes.prefers_first[keep])


def _components(
    item: Int[Array, " votes"], community: Int[Array, " votes"], y: Float[Array, " votes"], num_communities: int
) -> tuple[float, float, float]:
    """(between, within, MSB / within)."""
    _, cell = np.unique(item * num_communities + community, return_inverse=True)
    sizes, sums = np.bincount(cell).astype(np.float64), np.bincount(cell, weights=y)
    item_of_cell = np.zeros(len(sizes), dtype=np.int64)
    item_of_cell[cell] = item
    totals, total_sums = np.bincount(item).astype(np.float64), np.bincount(item, weights=y)
    means, item_means = sums / sizes, (total_sums / totals)[item_of_cell]
    squares_within = float((np.bincount(cell, weights=y * y) - sizes * means**2).sum())
    squares_between = float((sizes * (means - item_means) ** 2).sum())
    freedom_within = float((sizes - 1).sum())
    freedom_between = float((np.bincount(item_of_cell) - 1).sum())
    if not freedom_within or not freedom_between:
        return float("nan"), float("nan"), float("nan")
    within, mean_square = squares_within / freedom_within, squares_between / freedom_between
    group_size = (sizes.sum() - float((np.bincount(item_of_cell, weights=sizes**2) / totals).sum())) / freedom_between
    ratio = mean_square / within if within else float("inf") if mean_square else float("nan")
    return (mean_square - within) / group_size, within, ratio
