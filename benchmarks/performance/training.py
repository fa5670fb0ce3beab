"""Training beside the bare forward and backward pass, TRL's RewardTrainer, a plain loop, and the published way.

python -m benchmarks.performance.training FOLDER [ROUNDS [STEPS [CONVERSATIONS [MODEL [BATCH [DATA [LEARNING_RATE]]]]]]]

MODEL on the majority's pairs of DATA (workload.py), in float32 and in bfloat16 (autocast, float32 masters), STEPS
optimiser steps of BATCH interactions, drawn at random: batches by length would be no sample of the data. All ways see the same
pairs once, and update as often as far as their batches allow.
scpo_ray's time is that of its steps, as its `metrics.json` says; what the whole stage takes on top, with the start of Ray's
workers, is said beside it. The published way's speed is that of a batch; it learns from all pairs once, at the end.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from benchmarks.performance.batches import rectangles
from benchmarks.performance.rounds import Comparison, Measured
from benchmarks.performance.trl_trainer import seconds_of_trl
from benchmarks.performance.workload import DATA, MODELS, bare_model, name_of, peaks, prepared, shape_of
from scpo_ray import models
from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.core.model_size import training_flops
from scpo_ray.formatting import Formatter, TokenSequence
from scpo_ray.runtime import connect
from scpo_ray.stages import prepare, train_global
from scpo_ray.training.batches import Preference
from scpo_ray.training.data import load_preferences

TRL_BATCH, LOOP_BATCH, PUBLISHED_BATCH = 8, 8, 16
PUBLISHED_LENGTH, PUBLISHED_STEPS, CEILING_TOKENS = 512, 1, 2048
LEARNING_RATE = 2e-5
TOO_LARGE_AS_PUBLISHED = ("deberta",)
"""What 16 pairs of 512 tokens keep for their backward pass is more than 24 GiB."""
TEST_BATCH = 64


@dataclass
class Work:
    """A run, and the pairs of the first steps of its global model's training, step by step."""

    config: Config
    start: RunDirectory
    """Has the start model."""

    def __post_init__(self) -> None:
        self.directory = RunDirectory(self.config.run_dir)
        self.tokenizer = models.load_tokenizer(Path(self.start.path("global_model")))
        self.formatter = Formatter(self.tokenizer, self.config.format)
        task = train_global.plan(self.config, self.directory)
        data, held_out = (load_preferences(task, self.formatter, split=split) for split in ("train", "test"))
        assert data is not None and held_out is not None
        self.data, self.sequences, self.held_out = data, data.sequences, held_out
        settings = self.config.train_global
        batches = data.batches(
            batch_size=settings.batch_size,
            seed=task.seed,
            first_step=0,
            num_steps=settings.max_steps,
            length_window=settings.length_window,
        )
        self.steps = [list(batch) for batch in batches]
        self.pairs: list[list[Preference]] = [[pair for item in batch for pair in item.pairs] for batch in self.steps]

    @property
    def num_pairs(self) -> int:
        """Of all steps."""
        return sum(map(len, self.pairs))

    def batches_per_update(self, batch_size: int) -> int:
        """Of pairs, so that there are as many updates as steps, or fewer."""
        return math.ceil(math.ceil(self.num_pairs / batch_size) / len(self.steps))

    def num_updates(self, batch_size: int) -> int:
        """With so many pairs a batch."""
        return math.ceil(math.ceil(self.num_pairs / batch_size) / self.batches_per_update(batch_size))

    def of_pairs(self, pairs: Sequence[Preference]) -> tuple[list[TokenSequence], list[TokenSequence]]:
        """(chosen, rejected)."""
        return [self.sequences[pair.chosen] for pair in pairs], [self.sequences[pair.rejected] for pair in pairs]

    @torch.inference_mode()
    def test(self, model: PreTrainedModel) -> "Learned":
        """On the majority's test pairs."""
        model.eval()
        sequences = self.held_out.sequences
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].input_ids))
        rewards = torch.empty(len(order))
        for start in range(0, len(order), TEST_BATCH):
            rows = order[start : start + TEST_BATCH]
            rewards[rows] = model(**self.formatter.pad([sequences[row] for row in rows])).logits.squeeze(-1).float()
        sides = torch.tensor([(pair.chosen, pair.rejected) for pair in self.held_out.preferences])
        margins = rewards[sides[:, 0]] - rewards[sides[:, 1]]
        right = (margins > 0).numpy()
        return Learned(-logsigmoid(margins).mean().item(), float(right.mean()), len(margins), right)

    def test_once(self, model: PreTrainedModel, losses: dict[str, "Learned"], way: str) -> None:
        """In the first round: all rounds learn the same."""
        if way not in losses:
            losses[way] = self.test(model)

    @property
    def learning_rate(self) -> float:
        """Of every way, without a schedule."""
        return self.config.train_global.learning_rate


@dataclass(frozen=True)
class Learned:
    """What a model predicts after the steps."""

    loss: float
    """Nats per pair."""
    accuracy: float
    num_pairs: int
    right: np.ndarray | None = None
    """Whether each pair is."""

    def __str__(self) -> str:
        return f"{self.accuracy:.1%} of {self.num_pairs:,} test pairs right, loss {self.loss:.4f}"


def main(
    folder: str,
    rounds: str = "5",
    steps: str = "8",
    conversations: str = "300",
    model: str = "minilm",
    batch_size: str = "16",
    data: str = "prism",
    learning_rate: str = str(LEARNING_RATE),
) -> None:
    """Measure; the table on stdout, all figures in FOLDER/training_MODEL_DATA.json."""
    torch.set_num_threads(2)
    connect()
    place = Path(folder).absolute()
    work = make_work(
        place, int(conversations), int(steps), model, int(batch_size), data, learning_rate=float(learning_rate)
    )
    losses: dict[str, Learned] = {}
    stages: dict[str, list[Measured]] = {}
    ways: dict[str, Callable[[], Measured]] = {
        "ceiling": lambda: ceiling(work, torch.float32),
        "ceiling, bfloat16": lambda: ceiling(work, torch.bfloat16),
        "ceiling, bfloat16 by autocast": lambda: ceiling(work, torch.float32, autocast=True),
        "scpo_ray": lambda: ours(work, "float32", losses, stages),
        "scpo_ray, bfloat16": lambda: ours(work, "bfloat16", losses, stages),
        "TRL": lambda: with_trl(work, losses, bfloat16=False),
        "TRL, bfloat16": lambda: with_trl(work, losses, bfloat16=True),
        "plain loop": lambda: plain(work, losses),
        "as published": lambda: published(work),
    }
    if model in TOO_LARGE_AS_PUBLISHED:
        del ways["as published"]
    comparison = Comparison(
        f"Training: {model}, {data}",
        f"python -m benchmarks.performance.training FOLDER {rounds} {steps} {conversations} {model} {batch_size} {data} "
        f"{learning_rate}",
        "pairs",
        f"{MODELS[model]}, float32 unless it is said, {work.num_pairs:,} pairs in {steps} steps, of "
        f"{DATA[data].format(conversations=conversations)}. Before them {work.test(bare_model(work.start))}.",
        flops=flops_per_pair(work),
        peaks=peaks(),
    )
    comparison.run(ways, int(rounds), keep=place / f"training_{model}_{data}.json")
    comparison.rounds |= stages
    comparison.notes = {
        "ceiling": "transformers' forward and backward pass on batches without padding, each response once; no optimiser",
        "ceiling, bfloat16": "the same with weights in bfloat16",
        "ceiling, bfloat16 by autocast": "products in bfloat16, weights in float32",
        "scpo_ray": f"its steps; then {losses['scpo_ray']}",
        "scpo_ray, whole stage": "with its start and end, in a Ray that is up",
        "scpo_ray, whole stage, bfloat16": "the same",
        "scpo_ray, bfloat16": f"`precision auto` where the processor has it; then {losses['scpo_ray, bfloat16']}",
        "TRL, bfloat16": f"the same with `bf16`; then {losses['TRL, bfloat16']}",
        "TRL": f"RewardTrainer, {TRL_BATCH} pairs a batch, by length, gradients not checkpointed; "
        f"{work.num_updates(TRL_BATCH)} updates; "
        f"then {losses['TRL']}",
        "plain loop": f"{LOOP_BATCH} pairs a batch, padded to the longest; then {losses['plain loop']}",
        "as published": f"{PUBLISHED_BATCH} pairs a batch, padded to {PUBLISHED_LENGTH}; the first {PUBLISHED_STEPS} timed",
    }
    comparison.write(place / f"training_{model}_{data}.json")
    if "as published" in ways:
        comparison.notes["as published"] += (
            f"; after all of them, {work.num_updates(PUBLISHED_BATCH)} updates, {learned_as_published(work)}"
        )
        comparison.write(place / f"training_{model}_{data}.json")
    print(comparison.table())


def make_work(
    folder: Path,
    conversations: int,
    steps: int,
    model: str = "minilm",
    batch_size: int = 16,
    data: str = "prism",
    *,
    learning_rate: float = LEARNING_RATE,
) -> Work:
    """Data and start model."""
    known = prepared(folder, conversations, model, data)
    start = RunDirectory(known.run_dir).path("global_model")
    changes = {"model": start, "epochs": 100.0, "max_steps": steps, "batch_size": batch_size}
    changes |= {"learning_rate": learning_rate, "length_window": 1}
    config = Config(
        run_dir=str(folder / f"training_{name_of(conversations, model, data)}"),
        prepare=known.prepare.model_dump() | {"validation_fraction": 0.0},  # its pass would be in scpo_ray's time
        train_global=changes | {"schedule": "constant", "warmup_fraction": 0.0, "weight_decay": 0.0},
    )
    prepare.run(config)
    return Work(config, RunDirectory(known.run_dir))


def flops_per_pair(work: Work) -> float:
    """In the mean over the steps: every response forwards and backwards, once."""
    lengths = [
        len(work.sequences[index].input_ids) for batch in work.steps for item in batch for index in item.responses
    ]
    total = sum(lengths)
    mean = sum(length * length for length in lengths) / total  # what attention's part grows with
    return training_flops(shape_of(work.config), num_tokens=total, mean_length=mean) / work.num_pairs


def fresh(work: Work) -> PreTrainedModel:
    """The start model, in training, nothing dropped."""
    model = bare_model(work.start)
    models.prepare_for_training(model, dropout=False, gradient_checkpointing=False, is_narrow=True)
    return model


def ours(work: Work, precision: str, losses: dict[str, Learned], stages: dict[str, list[Measured]]) -> Measured:
    """`train_global`; its steps, and in `stages` all of it."""
    if work.directory.find("global_model") is not None:
        work.directory.remove("global_model")
    start = time.perf_counter()
    train_global.run(work.config.with_settings({"train_global.precision": precision}))
    whole = Measured(work.num_pairs, time.perf_counter() - start)
    metrics = work.directory.read_json("global_model/metrics.json")
    assert metrics["num_tokens"] == sum(
        len(work.sequences[index].input_ids) for batch in work.steps for item in batch for index in item.responses
    ), "the pairs are those that the others see"
    name = "scpo_ray" if precision == "float32" else "scpo_ray, bfloat16"
    stages.setdefault(name.replace("scpo_ray", "scpo_ray, whole stage"), []).append(whole)
    work.test_once(bare_model(work.directory), losses, name)
    return Measured(work.num_pairs, metrics["wall_time_s"])


def ceiling(work: Work, dtype: torch.dtype, *, autocast: bool = False) -> Measured:
    """The bare model, forward and backward, over what the steps hold.

    Args:
        dtype: of the weights.
        autocast: products in bfloat16, whatever the weights are.
    """
    model = fresh(work).to(dtype)
    sequences = [work.sequences[index] for batch in work.steps for item in batch for index in item.responses]
    wanted = sum(len(sequence.input_ids) for sequence in sequences)
    batches = list(rectangles(sequences, tokens=CEILING_TOKENS))
    start = time.perf_counter()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            rewards = model(input_ids=batch).logits
        rewards.sum().backward()
    seconds = time.perf_counter() - start
    return Measured(work.num_pairs * sum(batch.numel() for batch in batches) / wanted, seconds)


def with_trl(
    work: Work,
    losses: dict[str, Learned],
    *,
    bfloat16: bool,
    batch_size: int = TRL_BATCH,
    order: str = "group_by_length",
) -> Measured:
    """RewardTrainer; see `seconds_of_trl`."""
    model = fresh(work)
    seconds = seconds_of_trl(
        model,
        work.tokenizer,
        [pair for step in work.pairs for pair in step],
        work.sequences,
        folder=Path(work.config.run_dir).parent / "trl",
        learning_rate=work.learning_rate,
        batch_size=batch_size,
        accumulation_steps=work.batches_per_update(batch_size),
        order=order,
        bfloat16=bfloat16,
    )
    work.test_once(model, losses, "TRL, bfloat16" if bfloat16 else "TRL")
    return Measured(work.num_pairs, seconds)


def plain(work: Work, losses: dict[str, Learned]) -> Measured:
    """A loop as one writes it: pairs in batches padded to the longest, both sides in one pass."""
    model = fresh(work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.learning_rate, weight_decay=0.0)
    random = np.random.default_rng(0)
    start = time.perf_counter()
    for step in work.pairs:
        order = random.permutation(len(step)).tolist()
        optimizer.zero_grad()
        for first in range(0, len(order), LOOP_BATCH):
            chosen, rejected = work.of_pairs([step[index] for index in order[first : first + LOOP_BATCH]])
            rewards = model(**work.formatter.pad([*chosen, *rejected])).logits.squeeze(-1)
            margins = rewards[: len(chosen)] - rewards[len(chosen) :]
            (-logsigmoid(margins).sum() / len(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - start
    work.test_once(model, losses, "plain loop")
    return Measured(work.num_pairs, seconds)


def published(work: Work) -> Measured:
    """Each side padded to 512 and passed by itself; the first batches, after one that nobody times."""
    model = fresh(work)
    _published(work, model, batches_per_update=1, num_batches=1)
    return _published(work, model, batches_per_update=1, num_batches=PUBLISHED_STEPS)


def learned_as_published(work: Work) -> Learned:
    """From all pairs, with as many updates as the others make."""
    model = fresh(work)
    _published(work, model, batches_per_update=work.batches_per_update(PUBLISHED_BATCH))
    return work.test(model)


def _published(
    work: Work, model: PreTrainedModel, *, batches_per_update: int, num_batches: int | None = None
) -> Measured:
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.learning_rate, weight_decay=0.0)
    pairs = [pair for step in work.pairs for pair in step]
    batches = [pairs[first : first + PUBLISHED_BATCH] for first in range(0, len(pairs), PUBLISHED_BATCH)][:num_batches]
    start = time.perf_counter()
    for number, batch in enumerate(batches, start=1):
        chosen, rejected = (
            model(**work.formatter.pad(side, multiple=PUBLISHED_LENGTH)).logits.squeeze(-1)
            for side in work.of_pairs(batch)
        )
        (-logsigmoid(chosen - rejected).mean() / batches_per_update).backward()
        if number % batches_per_update == 0 or number == len(batches):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return Measured(sum(map(len, batches)), time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
