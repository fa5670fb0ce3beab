"""Scoring beside the bare forward pass, beside a plain loop, and beside the published way.

python -m benchmarks.performance.scoring FOLDER [ROUNDS [CONVERSATIONS [MODEL [DATA]]]]

MODEL over the responses of DATA (workload.py), in float32 and in bfloat16. scpo_ray is the whole stage in
a running Ray: reading, tokens, Ray Data and its actors' start, the cache, the table. The others get tokens (the ceiling) or
texts, and give rewards that nobody keeps; they do a part of the responses, so that a round takes minutes.
"""

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from benchmarks.performance.batches import rectangles
from benchmarks.performance.rounds import Comparison, Measured
from benchmarks.performance.workload import DATA, MODELS, bare_model, peaks, prepared, shape_of
from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.core.model_size import forward_flops
from scpo_ray.formatting import Formatter
from scpo_ray.models import load_tokenizer
from scpo_ray.runtime import connect
from scpo_ray.stages import score
from scpo_ray.stages.scoring_job import cache_address

NUM_INTERACTIONS, NUM_TOKENS = 150, 50_000
"""That are measured in this process, at least, where there are as many."""
CEILING_TOKENS, LOOP_BATCH = 2048, 32
CONVERSATIONS_OF_A_START = 2


class Work:
    """The run, and a part of its responses for what is measured in this process."""

    def __init__(self, config: Config) -> None:
        self.config, self.directory = config, RunDirectory(config.run_dir)
        self.model = bare_model(self.directory).eval()
        self.narrow_model = bare_model(self.directory).to(torch.bfloat16).eval()
        folder = Path(self.directory.path("global_model"))
        self.formatter = Formatter(load_tokenizer(folder), config.format)
        rows = self.directory.read_table("prepared/responses.parquet")
        chosen = np.random.default_rng(0).permutation(rows["interaction_id"].unique().to_numpy(zero_copy_only=False))
        self.interactions: list[pa.Table] = []
        tokens = 0
        for one in chosen:
            self.interactions.append(rows.filter(pa.compute.equal(rows["interaction_id"], one)))
            tokens += sum(len(sequence.input_ids) for sequence in self.tokens_of(self.interactions[-1]))
            if len(self.interactions) >= NUM_INTERACTIONS and tokens >= NUM_TOKENS:
                break
        self.part = pa.concat_tables(self.interactions)
        self.sequences = self.tokens_of(self.part)
        self.num_tokens = tokens

    def tokens_of(self, rows: pa.Table) -> list:
        """Formatted sequences."""
        return self.formatter.format(rows["context"].to_pylist(), rows["response"].to_pylist())

    @torch.inference_mode()
    def rewards(self, rows: pa.Table) -> tuple[int, list[float]]:
        """One padded batch: its tokens without the padding, and its rewards."""
        inputs = self.formatter.pad(self.tokens_of(rows))
        return int(inputs["attention_mask"].sum()), self.model(**inputs).logits.squeeze(-1).tolist()


def main(
    folder: str, rounds: str = "5", conversations: str = "300", model: str = "minilm", data: str = "prism"
) -> None:
    """Measure; the table on stdout, all figures in FOLDER/scoring_MODEL_DATA.json."""
    torch.set_num_threads(2)
    connect()
    place = Path(folder).absolute()
    work = Work(prepared(place, int(conversations), model, data))
    start = seconds_of_a_start(Work(prepared(place, CONVERSATIONS_OF_A_START, model)))
    score.run(work.config)
    known = rewards_of(work)
    check_equal(work, known)
    stage(work, "bfloat16")
    agreement = order_kept(work, known, rewards_of(work))
    comparison = Comparison(
        f"Scoring: {model}, {data}",
        f"python -m benchmarks.performance.scoring FOLDER {rounds} {conversations} {model} {data}",
        "tokens",
        f"{MODELS[model]}, float32 unless it is said, responses of {DATA[data].format(conversations=conversations)}.",
        flops=flops_per_token(work),
        peaks=peaks(),
        notes={
            "ceiling": "transformers' forward pass on batches without padding, tokens given",
            "ceiling, two passes": "the same, two side by side with a thread each",
            "ceiling, bfloat16": "weights in bfloat16",
            "ceiling, two passes, bfloat16": "both",
            "scpo_ray": f"the whole stage; it takes {start:.1f} s where there is next to nothing to score",
            "scpo_ray, bfloat16": f"`precision auto` where the processor has it; {agreement:.1%} of pairs in float32's order",
            "plain loop": f"{LOOP_BATCH} responses a batch, as they come, padded to the longest",
            "as published": "the responses of an interaction a batch",
        },
    )
    ways: dict[str, Callable[[], Measured]] = {
        "ceiling": lambda: ceiling(work, work.model),
        "ceiling, two passes": lambda: ceiling(work, work.model, num_passes=2),
        "ceiling, bfloat16": lambda: ceiling(work, work.narrow_model),
        "ceiling, two passes, bfloat16": lambda: ceiling(work, work.narrow_model, num_passes=2),
        "scpo_ray": lambda: stage(work, "float32"),
        "scpo_ray, bfloat16": lambda: stage(work, "bfloat16"),
        "plain loop": lambda: loop(
            work, [work.part.slice(start, LOOP_BATCH) for start in range(0, len(work.part), LOOP_BATCH)]
        ),
        "as published": lambda: loop(work, work.interactions),
    }
    comparison.run(ways, int(rounds), keep=place / f"scoring_{model}_{data}.json")
    print(comparison.table())


def flops_per_token(work: Work) -> float:
    """In the mean over the responses."""
    lengths = [len(sequence.input_ids) for sequence in work.sequences]
    total = work.num_tokens
    mean = sum(length * length for length in lengths) / total  # what attention's part grows with
    return forward_flops(shape_of(work.config), num_tokens=total, mean_length=mean) / total


def rewards_of(work: Work) -> dict[str, float]:
    """Response -> reward, as they are in the run."""
    scores = work.directory.read_table("scores/scores.parquet")
    return dict(zip(scores["response_id"].to_pylist(), scores["reward"].to_pylist(), strict=True))


def order_kept(work: Work, known: dict[str, float], found: dict[str, float]) -> float:
    """Share of the pairs whose two rewards stand in the same order."""
    pairs = work.directory.read_table("prepared/pairs.parquet", columns=["chosen_id", "rejected_id"])
    sides = list(zip(pairs["chosen_id"].to_pylist(), pairs["rejected_id"].to_pylist(), strict=True))
    return sum((known[a] > known[b]) == (found[a] > found[b]) for a, b in sides) / len(sides)


def check_equal(work: Work, known: dict[str, float]) -> None:
    """The ways must agree on the rewards."""
    for rows in work.interactions[:20]:
        _, found = work.rewards(rows)
        np.testing.assert_allclose(found, [known[one] for one in rows["response_id"].to_pylist()], atol=1e-4)


def stage(work: Work, precision: str, changes: Mapping[str, object] | None = None) -> Measured:
    """`score`, as if nothing had been scored before."""
    config = work.config.with_settings({"score.precision": precision, **(changes or {})})
    work.directory.remove("scores")
    shutil.rmtree(cache_address(config), ignore_errors=True)
    start = time.perf_counter()
    score.run(config)
    seconds = time.perf_counter() - start
    return Measured(work.directory.require("scores", job="score").statistics["num_tokens"], seconds)


def seconds_of_a_start(work: Work) -> float:
    """Of the stage, the shortest of three, less what the forward passes take at the bare model's speed."""
    found = min((stage(work, "bfloat16") for _ in range(3)), key=lambda one: one.seconds)
    return found.seconds - found.amount / ceiling(work, work.narrow_model).rate


def ceiling(work: Work, model: PreTrainedModel, *, num_passes: int = 1) -> Measured:
    """The bare model.

    Args:
        num_passes: side by side, which share this process's threads.
    """
    batches = list(rectangles(work.sequences, tokens=CEILING_TOKENS))
    num_threads = torch.get_num_threads()

    @torch.inference_mode()
    def forward(batch: torch.Tensor) -> None:
        torch.set_num_threads(num_threads // num_passes)
        model(input_ids=batch)

    start = time.perf_counter()
    if num_passes == 1:
        for batch in batches:
            forward(batch)
    else:
        with ThreadPoolExecutor(num_passes) as threads:
            list(threads.map(forward, batches))
    seconds = time.perf_counter() - start
    torch.set_num_threads(num_threads)
    return Measured(sum(batch.numel() for batch in batches), seconds)


def loop(work: Work, batches: list[pa.Table]) -> Measured:
    """Batch after batch, from texts."""
    start = time.perf_counter()
    tokens = sum(work.rewards(batch)[0] for batch in batches)
    return Measured(tokens, time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
