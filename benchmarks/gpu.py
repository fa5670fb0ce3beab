"""Scoring and training on one GPU, beside its ceilings, and their numbers beside the CPU's.

python -m benchmarks.gpu FOLDER [SIZE [ROUNDS [CONVERSATIONS [DEVICE]]]]      # SIZE: tiny, 0.1B, 1B, 8B

Needs torch, transformers and this package alone: what is measured is what Ray's actors and DeepSpeed's ranks call inside
(RewardScorer; collate, part_loss and backward, with torch's AdamW). A Llama-shaped model with random weights takes
PRISM-shaped texts (benchmarks/prism.py). First a few rewards and gradients are compared with float32 on the CPU, and must
agree; then all ways take turns, with an update a step each. DEVICE cpu runs the same on a machine without a GPU. TRL takes
part where it is installed. 8B are only scored.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

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

ONLY_SCORED = ("8B",)
"""Training takes 16 bytes a parameter and more."""
CEILING_TOKENS, LOOP_BATCH, PUBLISHED_LENGTH = 8192, 16, 512
LARGEST_DIFFERENCE, LEAST_COSINE = 0.1, 0.99
NUM_COMPARED, MICRO_TOKENS, LEARNING_RATE = 32, 8192, 1e-5
NOTES = {
    "scoring": {
        "ceiling, bfloat16": "forward pass on batches without padding, tokens given",
        "as published": "float32",
    },
    "training": {
        "ceiling, bfloat16": "forward and backward pass without padding, each response once; no optimiser",
        "as published": f"float32, padded to {PUBLISHED_LENGTH}",
    },
}


def main(folder: str, size: str = "1B", rounds: str = "5", conversations: str = "200", device: str = "cuda") -> None:
    """Compare, measure; tables on stdout, all figures in FOLDER/gpu_scoring_SIZE.json and gpu_training_SIZE.json."""
    work = prepared(Path(folder).absolute(), size, int(conversations), torch.device(device))
    name = torch.cuda.get_device_name() if work.device.type == "cuda" else "CPU"
    parameters = f"{work.shape.num_parameters / 1e9:.2f} B parameters"
    about = f"{parameters}, Llama-shaped, {conversations} PRISM-shaped conversations, {name}."
    command = f"python -m benchmarks.gpu FOLDER {size} {rounds} {conversations} {device}"
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
        measure(work, comparison, int(rounds))
        comparison.write(Path(folder) / f"gpu_{part}_{size}.json")
        print(f"{comparison.workload}\n\n{comparison.table()}\n")


def measure_scoring(work: Work, comparison: Comparison, rounds: int) -> None:
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
    comparison.run(ways, rounds)


def measure_training(work: Work, comparison: Comparison, rounds: int) -> None:
    """All ways, in turn."""
    ways: dict[str, Callable[[], Measured]] = {
        "ceiling, bfloat16": lambda: training_ceiling(work),
        "scpo_ray, bfloat16": lambda: ours(work),
        "plain loop, bfloat16": lambda: plain(work, None, bfloat16=True),
        "as published": lambda: plain(work, PUBLISHED_LENGTH, bfloat16=False),
    }
    if find_spec("trl") is not None:
        ways["TRL, bfloat16"] = lambda: with_trl(work)
    comparison.run(ways, rounds)


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
    rewards = {}
    for name, device in (("float32", "cpu"), ("bfloat16", str(work.device))):
        scorer = RewardScorer(work.folder, format_config=format_config(), precision=name, device=device)
        rewards[device, name] = scorer.score(work.contexts[few], work.responses[few]).rewards
    exact, found = rewards["cpu", "float32"], rewards[str(work.device), "bfloat16"]
    off = np.abs(found - exact).max() / exact.std()
    about = (
        f"Rewards in bfloat16 of {len(exact)} responses are off float32's on the CPU by {off:.3f} of their standard deviation "
        "at most."
    )
    if not off < LARGEST_DIFFERENCE:
        sys.exit(f"{work.device}: {about} That is more than {LARGEST_DIFFERENCE}: nothing is measured")
    return about


def compared_gradients(work: Work) -> str:
    """The cosine between the gradients of a few interactions, on the device under autocast and on the CPU in float32."""
    items = work.data.items[:2]
    found = []
    for device, bfloat16 in ((torch.device("cpu"), False), (work.device, True)):
        model = work.model(device=device)
        backward(model, items, work, device, bfloat16=bfloat16)
        found.append(torch.cat([each.grad.flatten().cpu() for each in model.parameters() if each.grad is not None]))
    cosine = torch.nn.functional.cosine_similarity(*found, dim=0).item()
    about = f"The gradient of two interactions has a cosine of {cosine:.5f} with float32's on the CPU."
    if not cosine > LEAST_COSINE:
        sys.exit(f"{work.device}: {about} That is less than {LEAST_COSINE}: nothing is measured")
    return about


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
    """RewardTrainer with tokens made before, no checkpointing of gradients."""
    import datasets
    from trl import RewardConfig, RewardTrainer

    pairs = [pair for step in work.steps() for item in step for pair in item.pairs]
    rows = {
        "chosen_ids": [work.sequences[pair.chosen].input_ids for pair in pairs],
        "rejected_ids": [work.sequences[pair.rejected].input_ids for pair in pairs],
        "length": [
            max(len(work.sequences[index].input_ids) for index in (pair.chosen, pair.rejected)) for pair in pairs
        ],
    }
    settings = RewardConfig(
        output_dir=str(work.folder.parent / "trl"),
        per_device_train_batch_size=LOOP_BATCH,
        gradient_accumulation_steps=math.ceil(math.ceil(len(pairs) / LOOP_BATCH) / len(work.steps())),
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_length=None,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,  # else the lengths are
        gradient_checkpointing=False,
        bf16=True,
        use_cpu=work.device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    data = datasets.Dataset.from_dict(rows)
    trainer = RewardTrainer(
        work.model(), settings, train_dataset=data, processing_class=models.load_tokenizer(work.folder)
    )
    return Measured(len(pairs), timed(work.device, trainer.train))


def _moved(inputs: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: each.to(device) for name, each in inputs.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
