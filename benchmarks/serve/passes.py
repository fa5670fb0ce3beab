"""What adapters cost inside a forward pass: the same packed batches through a whole model, and through adapters.

python -m benchmarks.serve.passes FOLDER      # of `python -m benchmarks.serve`, whose models it uses or makes

One thread, batches of about 1024 tokens, each shared evenly by 1, 2, 4 or 8 of 50 communities; three ways: each community
merged for the moment, each adding its update, and as `worth_merging` decides. Seven rounds in turn, medians over the whole
model's time.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.serve.runs import write_run
from benchmarks.serve.workload import NUM_RESPONSES, interactions
from scpo_ray.config import FormatConfig
from scpo_ray.config.serving import ServeConfig
from scpo_ray.core.batching import packed_batches
from scpo_ray.formatting import TokenSequence
from scpo_ray.scoring import RewardScorer
from scpo_ray.serving import adapters
from scpo_ray.serving.catalog import read_catalog
from scpo_ray.serving.loading import load_models

NUMBER, PER_BATCH, ROUNDS, NUM_INTERACTIONS, TOKENS = 50, (1, 2, 4, 8), 7, 20, 1024
WAYS: dict[str, Callable[[int, int, int], bool]] = {
    "merged": lambda rows, inputs, outputs: True,
    "added": lambda rows, inputs, outputs: False,
    "as decided": adapters.worth_merging,
}


def main(folder: str) -> None:
    """Prints how much longer passes through adapters take."""
    torch.set_num_threads(1)
    run = Path(folder).absolute() / f"adapters-{NUMBER}"
    write_run(run, NUMBER, adapters=True)
    whole = RewardScorer(
        run / "global_model", format_config=FormatConfig(), tokens_per_batch=TOKENS, precision="float32"
    )
    batches = batches_of(whole)
    config = ServeConfig(run_dir=str(run), authentication="off")
    catalog = read_catalog(config)
    names = list(catalog.models)
    seconds: dict[str, list[float]] = {}
    with load_models(config, catalog).used(catalog.models[names[0]]) as scorer:
        assert isinstance(scorer, adapters.AdapterScorer)
        for each in range(ROUNDS + 1):
            for name, forward in {"whole": whole.forward, **ways(scorer, names)}.items():
                start = time.perf_counter()
                for batch in batches:
                    forward(batch)
                if each:  # the first round warms
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
    for name, found in seconds.items():
        ratios = [own / other for own, other in zip(found, seconds["whole"], strict=True)]
        print(f"{name}: {statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})")


def ways(
    scorer: adapters.AdapterScorer, names: Sequence[str]
) -> dict[str, Callable[[Sequence[TokenSequence]], object]]:
    """Name of a way -> a pass that takes it."""

    def passing(number: int, decides: Callable[[int, int, int], bool]) -> Callable[[Sequence[TokenSequence]], object]:
        def forward(batch: Sequence[TokenSequence]) -> object:
            communities = [names[7 * (number * place // len(batch)) % NUMBER] for place in range(len(batch))]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(adapters, "worth_merging", decides)
                return scorer.forward_for(batch, communities)

        return forward

    return {
        f"{number} a batch, {way}": passing(number, decides) for number in PER_BATCH for way, decides in WAYS.items()
    }


def batches_of(scorer: RewardScorer) -> list[list[TokenSequence]]:
    """Sequences within the token budget."""
    contexts, responses = [], []
    for prompt, texts in interactions(NUM_INTERACTIONS, seed=64):
        contexts += [[{"role": "user", "content": prompt}]] * NUM_RESPONSES
        responses += texts
    sequences = scorer.formatter.format(contexts, responses)
    lengths = [len(sequence.input_ids) for sequence in sequences]
    return [[sequences[row] for row in rows] for rows in packed_batches(lengths, tokens_per_batch=TOKENS)]


if __name__ == "__main__":
    main(*sys.argv[1:])
