"""Prompts that say nearly the same, found by the cosine of their one- and two-gram counts.

All pairs of n texts would be n²/2 cosines. Only those that share a rare enough gram are looked at (prefix filtering, Bayardo,
Ma & Srikant, "Scaling Up All Pairs Similarity Search", 2007), and of those only the ones that norms of what is left could still
make similar (Anastasiu & Karypis, "L2AP: Fast Cosine Similarity Search With Prefix L-2 Norm Bounds", 2014). Neither loses one.
"""

import itertools
import os
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

_ROWS_PER_PRODUCT = 1024
_PAIRS_PER_CHECK = 1 << 15
_NUM_PARTS, _PARTS_PER_TRANSPOSE = 64, 8
_ROUNDING = 1e-9
_SINGLE_ROUNDING = 1e-5
_MAX_THREADS = 8
_WORD = re.compile(r"\w+")

_Links = tuple[np.ndarray, np.ndarray]
"""Texts by number, and those that they are linked to."""


def near_duplicate_groups(texts: Sequence[str], *, similarity: float) -> list[int]:
    """A group number per text; texts linked by chains of cosine >= `similarity` share one.

    Counts of word one- and two-grams (a word is a run of letters, digits or marks, in lower case), L2-normalised.
    A text without any word is a group of its own, whatever else it holds.

    Returns:
        Numbers from 0 in the order of first appearance.
    """
    different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    vectors = _rare_first(_unit_vectors(_gram_counts(different)))
    links = [(np.empty(0, dtype=np.int32),) * 2, *_similar(vectors, similarity)]
    row, column = (np.concatenate(ends) for ends in zip(*links, strict=True))
    graph = coo_matrix((np.ones(len(row), dtype=bool), (row, column)), shape=(len(different), len(different)))
    labels = connected_components(graph, directed=False)[1] if different else np.empty(0, dtype=np.int32)
    wordless = np.diff(vectors.indptr) == 0
    first_seen: dict[object, int] = {}
    return [
        first_seen.setdefault(("no word", place) if wordless[number] else int(labels[number]), len(first_seen))
        for place, number in enumerate(different[text] for text in texts)
    ]


def _gram_counts(texts: Iterable[str]) -> csr_matrix:
    """How often each text has each word and each two words in a row, (texts, grams)."""
    numbers: defaultdict[str, int] = defaultdict(itertools.count().__next__)
    words, lengths = array("i"), array("i")
    for text in texts:
        found = [numbers[word] for word in _WORD.findall(text.lower())]
        words.extend(found)
        lengths.append(len(found))
    one = np.frombuffer(words, dtype=np.int32) if words else np.empty(0, dtype=np.int32)
    row_of_one = np.repeat(np.arange(len(lengths), dtype=np.int32), np.asarray(lengths))
    is_inside = row_of_one[1:] == row_of_one[:-1]
    codes = one[:-1][is_inside].astype(np.int64) * len(numbers) + one[1:][is_inside]
    two = pa.array(codes).dictionary_encode()
    column = np.concatenate([one, two.indices.to_numpy() + np.int32(len(numbers))])
    row = np.concatenate([row_of_one, row_of_one[1:][is_inside]])
    shape = (len(lengths), len(numbers) + len(two.dictionary))
    return coo_matrix((np.ones(len(row)), (row, column)), shape=shape).tocsr()  # adds up what repeats


def _unit_vectors(counts: csr_matrix) -> csr_matrix:
    """Rows of norm 1; empty ones stay empty."""
    sizes = np.diff(counts.indptr)
    norms = np.sqrt(np.bincount(np.repeat(np.arange(len(sizes)), sizes), counts.data**2, minlength=len(sizes)))
    counts.data /= np.repeat(norms, sizes)
    return counts


def _rare_first(vectors: csr_matrix) -> csr_matrix:
    """Columns renumbered by how many rows have them, and sorted so within each row."""
    occurrences = np.bincount(vectors.indices, minlength=vectors.shape[1])
    rank = np.empty(vectors.shape[1], dtype=vectors.indices.dtype)
    rank[np.argsort(occurrences, kind="stable")] = np.arange(vectors.shape[1])
    ordered = csr_matrix((vectors.data, rank[vectors.indices], vectors.indptr), shape=vectors.shape)
    ordered.sort_indices()
    return ordered


@dataclass(frozen=True)
class _Prefixes:
    """Each row's rarest entries, as many as leave a rest with a norm below the similarity; rows by where their rest begins.

    Two unit vectors whose rarest common column is in the rest of either have a cosine of at most that rest's norm. So
    rows that are similar enough share a column of both their prefixes. And a row's columns before its rest begins are in
    the prefixes of all rows after it: what it has in common with them elsewhere is in its rest, and in theirs from there on.
    """

    entries: csr_matrix
    row: np.ndarray
    """Which text a row is, int (n,)."""
    rest: np.ndarray
    """The norm of its rest, float32 (n,)."""
    beyond: np.ndarray
    """Norms of all rows from the column on where the rest of a part's first row begins, float32 (parts, n)."""


def _rows_per_part(num_rows: int) -> int:
    return max(1, -(-num_rows // _NUM_PARTS))


def _prefixes(vectors: csr_matrix, similarity: float) -> _Prefixes:
    # Sums over a few rows only: rounding stays far below the slack.
    num_rows, num_columns = vectors.shape
    starts = range(0, num_rows, _ROWS_PER_PRODUCT)
    squares = np.concatenate(
        [np.empty(0), *(_squared_rests(vectors[start : start + _ROWS_PER_PRODUCT]) for start in starts)]
    )
    needed = squares >= (similarity - _ROUNDING) ** 2 - _ROUNDING
    counts = np.concatenate([[0], np.cumsum(needed)])[vectors.indptr]
    entries = csr_matrix(
        (vectors.data[needed].astype(np.float32), vectors.indices[needed], counts), shape=vectors.shape
    )
    first_left = vectors.indptr[:-1] + np.diff(counts)
    has_rest = first_left < vectors.indptr[1:]
    begin = np.full(num_rows, num_columns, dtype=np.int64)
    begin[has_rest] = vectors.indices[first_left[has_rest]]
    rest = np.zeros(num_rows, dtype=np.float32)
    rest[has_rest] = np.sqrt(np.maximum(squares[first_left[has_rest]], 0.0))
    order = np.argsort(begin, kind="stable")
    beyond = _norms_beyond(vectors, begin[order][:: _rows_per_part(num_rows)])
    return _Prefixes(entries[order], order, rest[order], beyond[:, order])


def _norms_beyond(vectors: csr_matrix, columns: np.ndarray) -> np.ndarray:
    """Norms of rows from each of these columns (ascending) on, float32 (columns, rows)."""
    norms = np.empty((len(columns), vectors.shape[0]), dtype=np.float32)
    for start in range(0, vectors.shape[0], _ROWS_PER_PRODUCT):
        part = vectors[start : start + _ROWS_PER_PRODUCT]
        rows = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        passed = np.searchsorted(columns, part.indices, side="right")  # how many of the columns an entry is beyond
        cells = rows * (len(columns) + 1) + passed
        squares = np.bincount(cells, part.data**2, minlength=part.shape[0] * (len(columns) + 1))
        sums = squares.reshape(part.shape[0], -1)[:, :0:-1].cumsum(axis=1)[:, ::-1]
        norms[:, start : start + part.shape[0]] = np.sqrt(sums).T
    return norms


def _similar(vectors: csr_matrix, similarity: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows with a cosine >= `similarity`, each once, some at a time."""
    prefixes, num_rows = _prefixes(vectors, similarity), vectors.shape[0]
    size = _rows_per_part(num_rows)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        for origin in range(0, num_rows, size * _PARTS_PER_TRANSPOSE):
            columns = prefixes.entries[origin:].T.tocsr()  # earlier rows have been compared with all

            def compare(rows: tuple[int, int], origin: int = origin, columns: csr_matrix = columns) -> _Links:
                one, other = _possible(prefixes, rows, columns, origin, similarity)
                close = _are_similar(vectors, one, other, similarity)
                return one[close], other[close]

            parts = range(origin, min(origin + size * _PARTS_PER_TRANSPOSE, num_rows), size)
            yield from pool.map(
                compare, (rows for start in parts for rows in _blocks(start, min(start + size, num_rows)))
            )


def _blocks(start: int, end: int) -> Iterator[tuple[int, int]]:
    for first in range(start, end, _ROWS_PER_PRODUCT):
        yield first, min(first + _ROWS_PER_PRODUCT, end)


def _possible(
    prefixes: _Prefixes, rows: tuple[int, int], columns: csr_matrix, origin: int, similarity: float
) -> _Links:
    """Texts, one of them in `rows`, the other in a later row, that may be similar by their prefixes and the norms of the rest.

    Args:
        rows: first and one past the last, of one part.
        columns: the prefixes' entries from row `origin` on, transposed.
    """
    start, end = rows
    sharing = (prefixes.entries[start:end] @ columns).tocoo()
    at_most = prefixes.rest[start:end][sharing.row]
    at_most *= prefixes.beyond[start // _rows_per_part(len(prefixes.row)), origin:][sharing.col]
    at_most += sharing.data
    kept = np.flatnonzero(at_most >= similarity - _SINGLE_ROUNDING)
    one, other = sharing.row[kept] + start, sharing.col[kept] + origin
    later = other > one
    return prefixes.row[one[later]], prefixes.row[other[later]]


def _are_similar(vectors: csr_matrix, one: np.ndarray, other: np.ndarray, similarity: float) -> np.ndarray:
    """Whether the rows' cosines, all of them computed, are >= `similarity`."""
    close = np.zeros(len(one), dtype=bool)
    for start in range(0, len(one), _PAIRS_PER_CHECK):
        part = slice(start, start + _PAIRS_PER_CHECK)
        cosine = vectors[one[part]].multiply(vectors[other[part]]).sum(axis=1)
        close[part] = np.asarray(cosine).ravel() >= similarity - _ROUNDING
    return close


def _squared_rests(vectors: csr_matrix) -> np.ndarray:
    """For every entry the squared norm of itself and what comes after it in its row."""
    until = np.concatenate([[0.0], np.cumsum(vectors.data**2)])
    rests: np.ndarray = np.repeat(until[vectors.indptr[1:]], np.diff(vectors.indptr)) - until[:-1]
    return rests
