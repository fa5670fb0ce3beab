"""What a model learns from as many pairs, by how they are put into batches: interactions by length, at random, pairs at random.

python -m benchmarks.performance.composition FOLDER [STEPS [SEEDS [DATA [LEARNING_RATE]]]]

MiniLM on the majority's pairs of DATA (workload.py), float32, STEPS optimiser steps of 16 interactions, or of as many pairs as
these have in the mean; then its loss and accuracy on the test pairs, for SEEDS orders of the data.
"""

import statistics
import sys
from pathlib import Path

import torch

from benchmarks.performance.batches import backward
from benchmarks.performance.training import Learned, Work, fresh, make_work
from scpo_ray.packing import Packer, tokens_per_pass
from scpo_ray.training.batches import PreferenceSet

INTERACTIONS = 16
WAYS = (("interactions", 16), ("interactions", 1), ("prompts", 1), ("pairs", 1))
"""`batching` and `length_window`; the first are the defaults."""


def main(folder: str, steps: str = "16", seeds: str = "3", data: str = "opinions", learning_rate: str = "5e-5") -> None:
    """Prints a table."""
    torch.set_num_threads(2)
    work = make_work(
        Path(folder).absolute(), 200, int(steps), batch_size=INTERACTIONS, data=data, learning_rate=float(learning_rate)
    )
    print(f"before: {work.test(fresh(work))}\n")
    print("| batching | length_window | pairs seen | tokens | loss | accuracy | of each seed |")
    print("|---|---|---|---|---|---|---|")
    for batching, window in WAYS:
        found = [learned(work, batching, window, int(steps), seed) for seed in range(int(seeds))]
        pairs, tokens = (statistics.mean(each[part] for each in found) for part in (1, 2))
        losses, accuracies = ([getattr(each[0], name) for each in found] for name in ("loss", "accuracy"))
        print(
            f"| {batching} | {window} | {pairs:,.0f} | {tokens:,.0f} | {statistics.mean(losses):.4f} | "
            f"{statistics.mean(accuracies):.1%} | {', '.join(f'{each:.1%}' for each in accuracies)} |",
            flush=True,
        )


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
