"""Pairs that a model from elsewhere may have been trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from scpo_ray.records import Message, context_id


@dataclass(frozen=True)
class Overlap:
    """How many pairs were left out, and what is left."""

    pairs: pa.Table
    num_left_out: int

    @property
    def words(self) -> str:
        """One sentence; empty where nothing was left out."""
        if not self.num_left_out:
            return ""
        total = self.num_left_out + len(self.pairs)
        return (
            f"{self.num_left_out:,} of {total:,} pairs ({self.num_left_out / total:.1%}) are left out: their contexts occur "
            "in what evaluate.trained_on names."
        )


def training_contexts(contexts: Sequence[Sequence[Message]]) -> set[str]:
    """Ids of contexts, blind to case and spacing."""
    return {_context_key(context) for context in contexts}


def without_overlap(pairs: pa.Table, context_of: Mapping[str, Sequence[Message]], seen: set[str]) -> Overlap:
    """The pairs whose context is not among those seen in training.

    Args:
        pairs: column chosen_id.
        context_of: response id -> context.
        seen: as `training_contexts` gives them.
    """
    keep = [_context_key(context_of[response]) not in seen for response in pairs["chosen_id"].to_pylist()]
    left = pairs.filter(pa.array(keep, pa.bool_()))
    return Overlap(left, len(pairs) - len(left))


def _context_key(context: Sequence[Message]) -> str:
    return context_id(
        [{"role": message["role"], "content": " ".join(message["content"].casefold().split())} for message in context]
    )
