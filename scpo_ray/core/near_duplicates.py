"""Prompts that say nearly the same, found by the cosine of their one- and two-gram counts."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

_ROWS_PER_PRODUCT = 1024


def near_duplicate_groups(texts: Sequence[str], *, similarity: float) -> list[int]:
    """A group number per text; texts linked by chains of cosine >= `similarity` share one.

    Counts of word one- and two-grams (a word is a run of letters, digits or marks, case folded), L2-normalised.
    A text without any word is a group of its own. Memory: one block of 1,024 rows of the sparse product at a time.

    Returns:
        Numbers from 0 in the order of first appearance.
    """
    from sklearn.feature_extraction.text import (
        CountVectorizer,
    )  # a second of imports, which most readers of splits spare
    from sklearn.preprocessing import normalize

    if not texts:
        return []
    vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", dtype=np.float64)
    try:
        vectors = normalize(vectorizer.fit_transform(texts), copy=False).tocsr()
    except ValueError:  # scikit-learn's "empty vocabulary": no text holds a word
        return list(range(len(texts)))
    rows, columns = [], []
    for start in range(0, len(texts), _ROWS_PER_PRODUCT):
        product = (vectors[start : start + _ROWS_PER_PRODUCT] @ vectors.T).tocoo()
        close = product.data >= similarity - 1e-9
        rows.append(product.row[close] + start)
        columns.append(product.col[close])
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(len(row), dtype=bool), (row, column)), shape=(len(texts), len(texts)))
    labels = connected_components(graph, directed=False)[1]
    first_seen: dict[int, int] = {}
    return [first_seen.setdefault(int(label), len(first_seen)) for label in labels]
