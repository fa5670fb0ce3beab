"""Pair sets written by hand."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from scpo_ray.evaluation.pairs import PairSet
from scpo_ray.records import SCORES


def scores_of(rewards: dict[str, float]) -> pa.Table:
    """SCORES of responses by id."""
    columns = {
        "response_id": list(rewards),
        "model_hash": ["by hand"] * len(rewards),
        "reward": np.array(list(rewards.values()), dtype=np.float32),
        "num_tokens": [10] * len(rewards),
        "truncated": [False] * len(rewards),
    }
    return pa.table(columns, schema=SCORES)


def pair_set(
    margins: Sequence[float],
    *,
    annotators: Sequence[str | None] | None = None,
    name: str = "Here",
    lengths: dict[str, int] | None = None,
) -> PairSet:
    """Pairs whose ruler has these margins; pair n is (c n, r n), its rejected response has reward 0."""
    size = len(margins)
    columns = {
        "pair_id": [f"p{n}" for n in range(size)],
        "community": [name] * size,
        "annotator_id": list(annotators or [f"a{n}" for n in range(size)]),
        "prompt_group": [f"g{n}" for n in range(size)],
        "chosen_id": [f"c{n}" for n in range(size)],
        "rejected_id": [f"r{n}" for n in range(size)],
    }
    table = pa.table({key: pa.array(values, pa.string()) for key, values in columns.items()})
    rewards = rewards_with(margins)
    lengths_of = {"response_id": list(rewards), "length": [(lengths or {}).get(response, 10) for response in rewards]}
    schema = pa.schema([("response_id", pa.string()), ("length", pa.int64())])
    return PairSet(name, table, scores_of(rewards), pa.table(lengths_of, schema=schema))


def rewards_with(margins: Sequence[float]) -> dict[str, float]:
    """Rewards with these margins."""
    return {f"c{n}": margin for n, margin in enumerate(margins)} | {f"r{n}": 0.0 for n in range(len(margins))}
