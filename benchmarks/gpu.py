"""Scoring and training on one GPU, beside its ceilings, and their numbers beside the CPU's.

python -m benchmarks.gpu FOLDER [SIZE [ROUNDS [CONVERSATIONS [DEVICE]]]]      # SIZE: tiny, 0.1B, 1B, 8B

Needs torch, transformers and this package alone: what is measured is what Ray's actors and DeepSpeed's ranks call inside
(RewardScorer; collate, part_loss and backward, with torch's AdamW). Where Ray is installed the stages themselves take part too
(gpu_stages.py), where TRL is its trainer; vLLM neither scores nor trains. A Llama-shaped model with random weights takes
PRISM-shaped texts (benchmarks/prism.py). First a few rewards and gradients, in float32 and in bfloat16, are compared with
float32 on the CPU, and must agree; then all ways take turns, with an update a step each. DEVICE cpu runs the same on a machine
without a GPU. 8B are only scored.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from benchmarks.gpu_work import Work, flops_per_pair, flops_per_token, format_config, num_pairs, prepared, seen
from benchmarks.performance.batches import rectangles
from benchmarks.performance.rounds import Comparison, Measured
from scpo_ray import models
from scpo_ray.config import OptimizationConfig
from scpo_ray.core.batching import token_budget_batches
from scpo_ray.scoring import RewardScorer
from scpo_ray.training.batches import Item, Preference
from scpo_ray.training.step import collate_items, normalizers, part_loss

if TYPE_CHECKING:
    from benchmarks.gpu_stages import Stages

ONLY_SCORED = ("8B",)
"""Training takes 16 bytes a parameter and more."""
CEILING_TOKENS, LOOP_BATCH, PUBLISHED_LENGTH = 8192, 16, 512
LARGEST_DIFFERENCE = {"float32": 0.001, "bfloat16": 0.1}
"""Of rewards, in their standard deviations."""
LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.99}
"""Of gradients."""
NUM_COMPARED, MICRO_TOKENS, LEARNING_RATE = 32, 8192, 1e-5
NOTES = {
    "scoring": {
        "ceiling, bfloat16": "forward pass on batches without padding, tokens given",
        "as published": "float32",
        "scpo_ray, whole stage, bfloat16": "on Ray, from files to a table",
    },
    "training": {
        "ceiling, bfloat16": "forward and backward pass without padding, each response once; no optimiser",
        "as published": f"float32, padded to a multiple of {PUBLISHED_LENGTH}",
        "scpo_ray on Ray, bfloat16": "the steps of the stage, of other pairs of these data, by their tokens",
        "scpo_ray on Ray, whole stage, bfloat16": "with its start and end, in a Ray that is up",
    },
}


def main(folder: str, size: str = "1B", rounds: str = "5", conversations: str = "200", device: str = "cuda") -> None:
    """Compare, measure; tables on stdout, all figures in FOLDER/gpu_scoring_SIZE.json and gpu_training_SIZE.json."""
    work = prepared(Path(folder).absolute(), size, int(conversations), torch.device(device))
    name = torch.cuda.get_device_name() if work.device.type == "cuda" else "CPU"
    parameters = f"{work.shape.num_parameters / 1e9:.2f} B parameters"
    about = f"{parameters}, Llama-shaped, {conversations} PRISM-shaped conversations, {name}."
    command = f"python -m benchmarks.gpu FOLDER {size} {rounds} {conversations} {device}"
    stages = stages_of(work)
    peaks = {name: matrix_flops(work.device, getattr(torch, name)) for name in ("float32", "bfloat16")}
    for part, unit, compare, flops, measure in (
        ("scoring", "tokens", compared_rewards, flops_per_token, measure_scoring),
        ("training", "pairs", compared_gradients, flops_per_pair, measure_training),
    ):
        if part == "training" and size in ONLY_SCORED:
            continue
        comparison = Comparison(
            f"GPU: {part}, {size}",
            command,
            unit,
            f"{about} {compare(work)}",
            notes=NOTES[part],
            flops=flops(work),
            peaks=peaks,
        )
        measure(work, comparison, int(rounds), stages)
        comparison.write(Path(folder) / f"gpu_{part}_{size}.json")
        print(f"{comparison.workload}\n\n{comparison.table()}\n")


def stages_of(work: Work) -> "Stages | None":
    """None where Ray is not installed."""
    if find_spec("ray") is None:
        return None
    from benchmarks.gpu_stages import Stages

    return Stages(work, learning_rate=LEARNING_RATE)


def measure_scoring(work: Work, comparison: Comparison, rounds: int, stages: "Stages | None") -> None:
    """All ways, in turn."""
    scorer = RewardScorer(work.folder, format_config=format_config(), precision="bfloat16", device=str(work.device))
    narrow, wide = work.model(torch.bfloat16).eval(), work.model().eval()
    batches = [*pieces(range(len(work.responses)), LOOP_BATCH)]
    ways: dict[str, Callable[[], Measured]] = {
        "ceiling, bfloat16": lambda: scoring_ceiling(work, narrow),
        "scpo_ray, bfloat16": lambda: scored(work, scorer),
        "plain loop, bfloat16": lambda: loop(work, narrow, batches),
        "as published": lambda: loop(work, wide, work.interactions),
    }
    if stages is not None:
        ways["scpo_ray, whole stage, bfloat16"] = stages.scored
    comparison.run(ways, rounds)


def measure_training(work: Work, comparison: Comparison, rounds: int, stages: "Stages | None") -> None:
    """All ways, in turn."""
    ways: dict[str, Callable[[], Measured]] = {
        "ceiling, bfloat16": lambda: training_ceiling(work),
        "scpo_ray, bfloat16": lambda: ours(work),
        "plain loop, bfloat16": lambda: plain(work, None, bfloat16=True),
        "as published": lambda: plain(work, PUBLISHED_LENGTH, bfloat16=False),
    }
    if find_spec("trl") is not None:
        ways["TRL, bfloat16"] = lambda: with_trl(work)
    whole: list[Measured] = []
    if stages is not None:
        ways["scpo_ray on Ray, bfloat16"] = lambda: trained(stages, whole)
    comparison.run(ways, rounds)
    if whole:
        comparison.rounds["scpo_ray on Ray, whole stage, bfloat16"] = whole


def matrix_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of products of square matrices, the best of ten."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = [timed(device, lambda: torch.mm(left, right)) for _ in range(11)]
    return 2 * size**3 / min(seconds[1:])


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds until the device has done it."""
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    finish()
    start = time.perf_counter()
    work()
    finish()
    return time.perf_counter() - start


def pieces(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    """So many at a time."""
    for start in range(0, len(indices), size):
        yield list(indices[start : start + size])


def compared_rewards(work: Work) -> str:
    """What the device's rewards are beside float32 on the CPU."""
    few = slice(0, NUM_COMPARED)

    def rewards(precision: str, device: str) -> np.ndarray:
        scorer = RewardScorer(work.folder, format_config=format_config(), precision=precision, device=device)
        return scorer.score(work.contexts[few], work.responses[few]).rewards

    exact, said = rewards("float32", "cpu"), []
    for precision, most in LARGEST_DIFFERENCE.items():
        off = np.abs(rewards(precision, str(work.device)) - exact).max() / exact.std()
        said.append(
            f"Rewards in {precision} of {len(exact)} responses are off float32's on the CPU by {off:.5f} of their standard "
            "deviation at most."
        )
        if not off < most:
            sys.exit(f"{work.device}: {said[-1]} That is more than {most}: nothing is measured")
    return " ".join(said)


def compared_gradients(work: Work) -> str:
    """The cosine between the gradients of a few interactions, on the device and on the CPU in float32."""

    def gradient(device: torch.device, precision: str) -> torch.Tensor:
        model = work.model(device=device)
        backward(model, work.data.items[:2], work, device, bfloat16=precision == "bfloat16")
        return torch.cat([each.grad.flatten().cpu() for each in model.parameters() if each.grad is not None])

    exact, said = gradient(torch.device("cpu"), "float32"), []
    for precision, least in LEAST_COSINE.items():
        cosine = torch.nn.functional.cosine_similarity(exact, gradient(work.device, precision), dim=0).item()
        said.append(
            f"The gradient of two interactions in {precision} has a cosine of {cosine:.5f} with float32's on the CPU."
        )
        if not cosine > least:
            sys.exit(f"{work.device}: {said[-1]} That is less than {least}: nothing is measured")
    return " ".join(said)


def backward(
    model: PreTrainedModel, items: Sequence[Item], work: Work, device: torch.device, *, bfloat16: bool
) -> None:
    """Gradients of a global batch, in micro-batches of a token budget, each response once."""
    config = OptimizationConfig()
    normalizer, pairs = normalizers(items, config)
    longest = [
        max(len(work.sequences[index].input_ids) for index in item.responses) * len(item.responses) for item in items
    ]
    for rows in token_budget_batches(longest, tokens_per_batch=MICRO_TOKENS):
        batch = collate_items([items[row] for row in rows], work.data, work.formatter.pad, config).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            part_loss(model, batch, config, normalizer=normalizer, num_pairs=pairs).loss.backward()


@torch.inference_mode()
def scoring_ceiling(work: Work, model: PreTrainedModel) -> Measured:
    """The bare model."""
    batches = [batch.to(work.device) for batch in rectangles(work.sequences, tokens=CEILING_TOKENS)]
    seconds = timed(work.device, lambda: [model(input_ids=batch) for batch in batches])
    return Measured(sum(batch.numel() for batch in batches), seconds)


def scored(work: Work, scorer: RewardScorer) -> Measured:
    """From texts to rewards."""
    seconds = timed(work.device, lambda: scorer.score(work.contexts, work.responses))
    return Measured(sum(len(sequence.input_ids) for sequence in work.sequences), seconds)


@torch.inference_mode()
def loop(work: Work, model: PreTrainedModel, batches: Sequence[Sequence[int]]) -> Measured:
    """Batch after batch, from texts."""

    def run() -> None:
        for rows in batches:
            sequences = work.formatter.format(
                [work.contexts[row] for row in rows], [work.responses[row] for row in rows]
            )
            model(**_moved(work.formatter.pad(sequences), work.device)).logits.tolist()

    seconds = timed(work.device, run)
    return Measured(sum(len(work.sequences[row].input_ids) for rows in batches for row in rows), seconds)


def training_ceiling(work: Work) -> Measured:
    """The bare model, weights in bfloat16."""
    model = work.model(torch.bfloat16).train()
    sequences = [work.sequences[index] for index in seen(work)]
    batches = [batch.to(work.device) for batch in rectangles(sequences, tokens=CEILING_TOKENS)]
    seconds = timed(work.device, lambda: [model(input_ids=batch).logits.sum().backward() for batch in batches])
    wanted = sum(len(sequence.input_ids) for sequence in sequences)
    return Measured(num_pairs(work) * sum(batch.numel() for batch in batches) / wanted, seconds)


def ours(work: Work) -> Measured:
    """Every response once, batches by length, autocast over float32 masters, fused AdamW."""
    model = work.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def run() -> None:
        for step in work.steps():
            backward(model, step, work, work.device, bfloat16=True)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return Measured(num_pairs(work), timed(work.device, run))


def trained(stages: "Stages", whole: list[Measured]) -> Measured:
    """The stage's steps, and in `whole` all of it."""
    steps, all_of_it = stages.trained()
    whole.append(all_of_it)
    return steps


def plain(work: Work, length: int | None, *, bfloat16: bool) -> Measured:
    """Pairs as they come, both sides in one pass padded to the longest, or each by itself padded to `length`."""
    model = work.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def backward_of(pairs: Sequence[Preference], *, num_pairs: int) -> None:
        sides = [[work.sequences[pair.chosen] for pair in pairs], [work.sequences[pair.rejected] for pair in pairs]]
        passes = [sides[0] + sides[1]] if length is None else sides
        with torch.autocast(work.device.type, torch.bfloat16, enabled=bfloat16):
            inputs = [_moved(work.formatter.pad(each, multiple=length or 1), work.device) for each in passes]
            rewards = torch.cat([model(**each).logits.squeeze(-1).float() for each in inputs])
        (-logsigmoid(rewards[: len(pairs)] - rewards[len(pairs) :]).sum() / num_pairs).backward()

    def run() -> None:
        for step in work.steps():
            pairs = [pair for item in step for pair in item.pairs]
            for rows in pieces(range(len(pairs)), LOOP_BATCH):
                backward_of([pairs[row] for row in rows], num_pairs=len(pairs))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return Measured(num_pairs(work), timed(work.device, run))


def with_trl(work: Work) -> Measured:
    """RewardTrainer, by length."""
    from benchmarks.performance.trl_trainer import seconds_of_trl

    pairs = [pair for step in work.steps() for item in step for pair in item.pairs]
    seconds = seconds_of_trl(
        work.model(),
        models.load_tokenizer(work.folder),
        pairs,
        work.sequences,
        folder=work.folder.parent / "trl",
        learning_rate=LEARNING_RATE,
        batch_size=LOOP_BATCH,
        accumulation_steps=math.ceil(math.ceil(len(pairs) / LOOP_BATCH) / len(work.steps())),
        order="group_by_length",
        bfloat16=True,
    )
    return Measured(len(pairs), seconds)


def _moved(inputs: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: each.to(device) for name, each in inputs.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
