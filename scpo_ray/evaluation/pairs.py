"""Test (or validation) pairs with everything that a measure needs beside a model's rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray.core.accuracy import pair_correctness
from scpo_ray.core.agreement import agreement
from scpo_ray.errors import DataError


@dataclass(frozen=True)
class PairSet:
    """Pairs of one or more communities.

    Args:
        name: whose they are, for messages.
        table: columns pair_id, community, annotator_id, prompt_group, chosen_id, rejected_id.
        global_scores: the SCORES columns of the ruler, for all of their responses.
        lengths_of: columns response_id, length: characters of the response alone, the same for every model.
    """

    name: str
    table: pa.Table
    global_scores: pa.Table
    lengths_of: pa.Table

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def clusters(self) -> np.ndarray:
        """Annotators, or prompt groups where there are none."""
        return pc.coalesce(self.table["annotator_id"], self.table["prompt_group"]).to_numpy(zero_copy_only=False)

    @cached_property
    def cluster_codes(self) -> np.ndarray:
        """A number for each of `clusters`, from 0 in the order of their names: what the same set is grouped by, quickly."""
        return sorted_codes(pc.coalesce(self.table["annotator_id"], self.table["prompt_group"]))

    @cached_property
    def response_ids(self) -> pa.Array:
        """Every response that occurs, once, sorted."""
        return pc.unique(self._both_sides).sort()

    @property
    def _both_sides(self) -> pa.ChunkedArray:
        """All chosen, then all rejected ones."""
        return pa.chunked_array([*self.table["chosen_id"].chunks, *self.table["rejected_id"].chunks], pa.string())

    @cached_property
    def _known_rewards(self) -> dict[int, tuple[pa.Table, np.ndarray, np.ndarray]]:
        """id of a table of scores -> itself, and both sides' rewards: one table is asked for them many times."""
        return {}

    def rewards(self, scores: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """(chosen, rejected) rewards, float32.

        Raises:
            DataError: a response has no score, or its score is not a number.
        """
        if id(scores) not in self._known_rewards:
            both = _by_id(scores, "reward", self._both_sides)
            self._known_rewards[id(scores)] = (scores, both[: len(self)], both[len(self) :])
        _, chosen, rejected = self._known_rewards[id(scores)]
        broken = ~(np.isfinite(chosen) & np.isfinite(rejected))
        if broken.any():
            pair = self.table["pair_id"][int(np.argmax(broken))]
            raise DataError(
                f"{self.name}: {int(broken.sum())} of {len(broken)} pairs have no finite reward (the first is {pair}); "
                "score them again, or leave the model out"
            )
        return chosen, rejected

    def margins(self, scores: pa.Table) -> np.ndarray:
        """Chosen minus rejected reward, float64."""
        chosen, rejected = self.rewards(scores)
        return chosen.astype(np.float64) - rejected.astype(np.float64)

    def correct(self, scores: pa.Table) -> np.ndarray:
        """1, 0 or (equal rewards) 0.5 per pair."""
        chosen, rejected = self.rewards(scores)
        return pair_correctness(chosen_rewards=chosen, rejected_rewards=rejected)

    def truncated_share(self, scores: pa.Table) -> float:
        """Share of these pairs' responses, each counted once, that a model saw cut or without all of their context."""
        is_own = pc.is_in(scores["response_id"], self.response_ids)
        found = scores["truncated"].filter(is_own)
        return pc.mean(found.cast(pa.int8())).as_py() if len(found) else float("nan")

    @cached_property
    def global_correct(self) -> np.ndarray:
        """The ruler's own."""
        return self.correct(self.global_scores)

    def global_is_wrong(self, threshold: float) -> np.ndarray:
        """True where the ruler's agreement is below the threshold; at 0.5, where it prefers the rejected response."""
        chosen, rejected = self.rewards(self.global_scores)
        return agreement(chosen_rewards=chosen, rejected_rewards=rejected) < threshold

    @cached_property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """(chosen, rejected) characters of the responses."""
        return tuple(
            _by_id(self.lengths_of, "length", self.table[side]).astype(np.int64)
            for side in ("chosen_id", "rejected_id")
        )  # type: ignore[return-value]

    def of(self, community: str) -> "PairSet":
        """One community's part."""
        table = self.table.filter(pc.equal(self.table["community"], community))
        return PairSet(community, table, self.global_scores, self.lengths_of)


def sorted_codes(texts: pa.ChunkedArray) -> np.ndarray:
    """A number for each text, from 0 in the order of the different ones: np.unique's inverse, without objects. int64."""
    encoded = texts.combine_chunks().dictionary_encode()
    rank = np.empty(len(encoded.dictionary), dtype=np.int64)
    rank[pc.array_sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(rank))
    return rank[encoded.indices.to_numpy()]


def pooled(name: str, sets: Sequence[PairSet]) -> PairSet:
    """All of them as one, in their order."""
    return PairSet(name, pa.concat_tables([pairs.table for pairs in sets]), sets[0].global_scores, sets[0].lengths_of)


def response_lengths(responses: pa.Table) -> pa.Table:
    """Characters of each response. Args: responses: columns response_id, response."""
    return pa.table({"response_id": responses["response_id"], "length": pc.utf8_length(responses["response"])})


def _by_id(scores: pa.Table, column: str, identifiers: pa.ChunkedArray) -> np.ndarray:
    """A column of scores in the order of the identifiers; NaN where a response has none."""
    positions = pc.index_in(identifiers, scores["response_id"].combine_chunks())
    return scores[column].cast(pa.float64()).take(positions).to_numpy().astype(np.float32)
