"""What a model learns from as many pairs, by how they are put into batches, beside what TRL's RewardTrainer learns.

python -m benchmarks.performance.composition FOLDER [STEPS [SEEDS [DATA [LEARNING_RATE [all|default]]]]]

MiniLM on the majority's pairs of DATA (workload.py), float32, STEPS optimiser steps of 16 interactions, or of as many pairs as
these have in the mean; then its loss and accuracy on the test pairs, for SEEDS orders of the data. TRL sees the pairs of the
random interactions, in as many updates. Differences in accuracy are paired, of the means over the seeds, with standard errors
over prompts and seeds. `default` compares the default way with TRL alone.
"""

import copy
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from benchmarks.performance.batches import backward
from benchmarks.performance.rounds import circumstances
from benchmarks.performance.training import Learned, Work, fresh, make_work, with_trl
from scpo_ray.packing import Packer, tokens_per_pass
from scpo_ray.training.batches import PreferenceSet

INTERACTIONS = 16
WAYS = (("interactions", 16), ("interactions", 1), ("prompts", 1), ("pairs", 1), ("TRL", 1))
"""`batching` and `length_window`; the first are the defaults."""


class Difference(NamedTuple):
    """Of two shares."""

    accuracy: float
    error: float
    """Standard error."""


def main(
    folder: str,
    steps: str = "16",
    seeds: str = "3",
    data: str = "opinions",
    learning_rate: str = "5e-5",
    which: str = "all",
) -> None:
    """Prints a table, keeps FOLDER/composition_DATA.json."""
    torch.set_num_threads(2)
    place = Path(folder).absolute()
    work = make_work(place, 200, int(steps), batch_size=INTERACTIONS, data=data, learning_rate=float(learning_rate))
    print(f"before: {work.test(fresh(work))}\n")
    print("| batching | length_window | pairs seen | tokens | loss | accuracy | of each seed | beside TRL, points |")
    print("|---|---|---|---|---|---|---|---|")
    found: dict[str, list[tuple[Learned, int, int]]] = {}
    differences: dict[str, Difference] = {}
    for batching, window in reversed(WAYS if which == "all" else (WAYS[0], WAYS[-1])):
        name = f"{batching} | {window}"
        learn = of_trl if batching == "TRL" else learned
        found[name] = [learn(work, batching, window, int(steps), seed) for seed in range(int(seeds))]
        prompts = [pair.prompt_id for pair in work.held_out.preferences]
        differences[name] = beside(_right(found[name]), _right(next(iter(found.values()))), prompts)
        print(row(name, found[name], differences[name]), flush=True)
    each = {
        name: {
            "seeds": [
                {"loss": one.loss, "accuracy": one.accuracy, "pairs": pairs, "tokens": tokens}
                for one, pairs, tokens in of
            ],
            "beside TRL": differences[name]._asdict(),
        }
        for name, of in found.items()
    }
    (place / f"composition_{data}.json").write_text(json.dumps(circumstances() | {"ways": each}, indent=1) + "\n")


def row(name: str, found: Sequence[tuple[Learned, int, int]], difference: Difference) -> str:
    """Of the table."""
    pairs, tokens = (statistics.mean(each[part] for each in found) for part in (1, 2))
    losses, accuracies = ([getattr(each[0], name) for each in found] for name in ("loss", "accuracy"))
    return (
        f"| {name} | {pairs:,.0f} | {tokens:,.0f} | {statistics.mean(losses):.4f} | {statistics.mean(accuracies):.1%} | "
        f"{', '.join(f'{each:.1%}' for each in accuracies)} | {100 * difference.accuracy:+.1f} ({100 * difference.error:.1f}) |"
    )


def _right(found: Sequence[tuple[Learned, int, int]]) -> Float[np.ndarray, "seeds pairs"]:
    return np.array([one.right for one, *_ in found], float)


def beside(
    ours: Float[np.ndarray, "seeds pairs"], other: Float[np.ndarray, "seeds pairs"], prompts: Sequence[str]
) -> Difference:
    """The paired difference of two ways' accuracies.

    Its variance is the sum of that over prompts (of the means over seeds) and that over seeds (of the means over pairs), which is
    too much by what both share: seeds and prompts are crossed.

    Args:
        ours: 1 where a pair is right.
        prompts: of each pair.
    """
    found = ours - other
    by_pair, by_seed = found.mean(axis=0), found.mean(axis=1)
    _, which = np.unique(prompts, return_inverse=True)
    sums = np.bincount(which, weights=by_pair - by_pair.mean())
    over_prompts = np.square(sums).sum() * len(sums) / (len(sums) - 1) / len(by_pair) ** 2
    over_seeds = by_seed.var(ddof=1) / len(by_seed) if len(by_seed) > 1 else 0.0
    return Difference(float(found.mean()), float(np.sqrt(over_prompts + over_seeds)))


def of_trl(work: Work, batching: str, window: int, steps: int, seed: int) -> tuple[Learned, int, int]:
    """As `learned`, by RewardTrainer, from the pairs that random interactions have under this seed."""
    seen = copy.copy(work)
    batches = work.data.batches(batch_size=INTERACTIONS, seed=seed, first_step=0, num_steps=steps, length_window=window)
    seen.steps = [list(batch) for batch in batches]
    seen.pairs = [[pair for item in batch for pair in item.pairs] for batch in seen.steps]
    found: dict[str, Learned] = {}
    with_trl(seen, found, bfloat16=False)
    sides = [index for step in seen.pairs for pair in step for index in (pair.chosen, pair.rejected)]
    return found["TRL"], seen.num_pairs, sum(len(work.sequences[index].input_ids) for index in sides)


def learned(work: Work, batching: str, window: int, steps: int, seed: int) -> tuple[Learned, int, int]:
    """What a model learned, from how many pairs, and of how many tokens."""
    data = PreferenceSet(work.sequences, work.data.preferences, batching=batching)
    interactions = len({pair.interaction_id for pair in data.preferences})
    size = round(INTERACTIONS / interactions * len(data.items))
    model = fresh(work)
    packer, most = Packer(model), tokens_per_pass(model.config.intermediate_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.learning_rate, weight_decay=0.0, fused=True)
    num_pairs = num_tokens = 0
    for step in data.batches(batch_size=size, seed=seed, first_step=0, num_steps=steps, length_window=window):
        items = list(step)
        num_pairs += backward(model, items, data, packer.inputs_of, most=most)
        num_tokens += sum(len(work.sequences[index].input_ids) for item in items for index in item.responses)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    tested = fresh(work)  # which takes padded batches
    tested.load_state_dict(model.state_dict())
    return work.test(tested), num_pairs, num_tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
