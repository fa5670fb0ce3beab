"""What adapters cost inside a forward pass: the same batches through a whole model, and through adapters of 7 and 50 communities.

python -m benchmarks.serve.passes FOLDER      # of `python -m benchmarks.serve`, whose models it uses or makes

One thread, batches of 1024 tokens, every row another community; seven rounds in turn, medians.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.serve.runs import write_run
from benchmarks.serve.workload import NUM_RESPONSES, interactions
from scpo_ray.config import FormatConfig
from scpo_ray.config.serving import ServeConfig
from scpo_ray.core.batching import token_budget_batches
from scpo_ray.formatting import TokenSequence
from scpo_ray.scoring import RewardScorer
from scpo_ray.serving.catalog import read_catalog
from scpo_ray.serving.loading import load_models

NUMBERS, ROUNDS, NUM_INTERACTIONS, TOKENS = (7, 50), 7, 40, 1024


def main(folder: str) -> None:
    """Prints how much longer passes through adapters take."""
    torch.set_num_threads(1)
    place, draw = Path(folder).absolute(), np.random.default_rng(0)
    for number in (1, *NUMBERS):
        write_run(place / f"adapters-{number}", number, adapters=True)
    whole = RewardScorer(
        place / "adapters-1/global_model", format_config=FormatConfig(), tokens_per_batch=TOKENS, precision="float32"
    )
    batches = batches_of(whole)
    passes = {"the whole model": whole.forward}
    for number in NUMBERS:
        config = ServeConfig(run_dir=str(place / f"adapters-{number}"), authentication="off")
        catalog = read_catalog(config)
        first = next(iter(catalog.models.values()))
        with load_models(config, catalog).used(first) as scorer:
            names = list(catalog.models)
            passes[f"adapters of {number}"] = lambda batch, scorer=scorer, names=names: scorer.forward_for(
                batch, [names[place] for place in draw.integers(len(names), size=len(batch))]
            )
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for each in range(ROUNDS + 1):
        for name, forward in passes.items():
            start = time.perf_counter()
            for batch in batches:
                forward(batch)
            if each:  # the first round warms
                seconds[name].append(time.perf_counter() - start)
    reference = seconds["the whole model"]
    for name, found in seconds.items():
        ratios = [own / other for own, other in zip(found, reference, strict=True)]
        print(f"{name}: {statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})")


def batches_of(scorer: RewardScorer) -> list[Sequence[TokenSequence]]:
    """Sequences of similar length together, within the token budget."""
    contexts, responses = [], []
    for prompt, texts in interactions(NUM_INTERACTIONS, seed=64):
        contexts += [[{"role": "user", "content": prompt}]] * NUM_RESPONSES
        responses += texts
    sequences = scorer.formatter.format(contexts, responses)
    lengths = [len(sequence.input_ids) for sequence in sequences]
    return [[sequences[row] for row in rows] for rows in token_budget_batches(lengths, tokens_per_batch=TOKENS)]


if __name__ == "__main__":
    main(*sys.argv[1:])
