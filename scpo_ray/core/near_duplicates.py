"""Prompts that say nearly the same, found by the cosine of their one- and two-gram counts.

All pairs of n texts would be n²/2 cosines: only those that share a rare enough gram are looked at (prefix filtering,
Bayardo, Ma & Srikant, "Scaling Up All Pairs Similarity Search", 2007), which loses none.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

_ROWS_PER_PRODUCT = 1024
_PAIRS_PER_CHECK = 1 << 17
_ROUNDING = 1e-9


def near_duplicate_groups(texts: Sequence[str], *, similarity: float) -> list[int]:
    """A group number per text; texts linked by chains of cosine >= `similarity` share one.

    Counts of word one- and two-grams (a word is a run of letters, digits or marks, case folded), L2-normalised.
    A text without any word is a group of its own, whatever else it holds.

    Returns:
        Numbers from 0 in the order of first appearance.
    """
    from sklearn.feature_extraction.text import (
        CountVectorizer,
    )  # a second of imports, which most readers of splits spare
    from sklearn.preprocessing import normalize

    if not texts:
        return []
    different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", dtype=np.float64)
    try:
        vectors = normalize(vectorizer.fit_transform(different), copy=False).tocsr()
    except ValueError:  # scikit-learn's "empty vocabulary": no text holds a word
        return list(range(len(texts)))
    links = [pair for block in _similar(_rare_first(vectors), similarity) for pair in block]
    row, column = np.concatenate(links[::2]), np.concatenate(links[1::2])
    graph = coo_matrix((np.ones(len(row), dtype=bool), (row, column)), shape=(len(different), len(different)))
    labels = connected_components(graph, directed=False)[1]
    wordless = np.diff(vectors.indptr) == 0
    first_seen: dict[object, int] = {}
    return [
        first_seen.setdefault(("no word", place) if wordless[number] else int(labels[number]), len(first_seen))
        for place, number in enumerate(different[text] for text in texts)
    ]


def _rare_first(vectors: csr_matrix) -> csr_matrix:
    """Columns renumbered by how many rows have them, and sorted so within each row."""
    occurrences = np.bincount(vectors.indices, minlength=vectors.shape[1])
    rank = np.empty(vectors.shape[1], dtype=vectors.indices.dtype)
    rank[np.argsort(occurrences, kind="stable")] = np.arange(vectors.shape[1])
    ordered = csr_matrix((vectors.data, rank[vectors.indices], vectors.indptr), shape=vectors.shape)
    ordered.sort_indices()
    return ordered


def _similar(vectors: csr_matrix, similarity: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (i, j), i < j, of cosine >= `similarity`, a block of i at a time."""
    prefixes = _prefixes(vectors, similarity)
    columns = prefixes.T.tocsr()
    for start in range(0, vectors.shape[0], _ROWS_PER_PRODUCT):
        sharing = (prefixes[start : start + _ROWS_PER_PRODUCT] @ columns).tocoo()
        later = sharing.col > sharing.row + start
        first, second = sharing.row[later] + start, sharing.col[later]
        close = np.zeros(len(first), dtype=bool)
        for each in range(0, len(first), _PAIRS_PER_CHECK):
            part = slice(each, each + _PAIRS_PER_CHECK)
            cosine = vectors[first[part]].multiply(vectors[second[part]]).sum(axis=1)
            close[part] = np.asarray(cosine).ravel() >= similarity - _ROUNDING
        yield first[close], second[close]


def _prefixes(vectors: csr_matrix, similarity: float) -> csr_matrix:
    """Each row's rarest entries, as many as leave a rest with a norm below `similarity`.

    Two unit vectors whose rarest common column is in the rest of either have a cosine of at most that rest's norm. So
    rows that are similar enough share a column of both their prefixes.
    """
    # Sums over a few rows only: rounding stays far below the slack.
    starts = range(0, vectors.shape[0], _ROWS_PER_PRODUCT)
    rest = np.concatenate([_squared_rests(vectors[start : start + _ROWS_PER_PRODUCT]) for start in starts])
    needed = rest >= (similarity - _ROUNDING) ** 2 - _ROUNDING
    counts = np.concatenate([[0], np.cumsum(needed)])[vectors.indptr]
    return csr_matrix((vectors.data[needed], vectors.indices[needed], counts), shape=vectors.shape)


def _squared_rests(vectors: csr_matrix) -> np.ndarray:
    """For every entry the squared norm of itself and what comes after it in its row."""
    until = np.concatenate([[0.0], np.cumsum(vectors.data**2)])
    rests: np.ndarray = np.repeat(until[vectors.indptr[1:]], np.diff(vectors.indptr)) - until[:-1]
    return rests
