"""What each step towards the ceiling is worth: everything, and everything but one, in turn; beside what its FLOPs predict.

python -m benchmarks.performance.steps FOLDER [ROUNDS [CONVERSATIONS [MODEL [DATA]]]]

MODEL in float32, where nothing else is said, on a part of the responses of DATA (workload.py), in this process: RewardScorer
from texts to rewards, and the training step's forward and backward passes. A ratio below 1 is what is lost without the step.
Where DeBERTa is padded it attends as transformers does, too; where a decoder is, nothing is shared, and its last layer's MLP is
whole.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.performance.batches import backward
from benchmarks.performance.rounds import Comparison, Measured
from benchmarks.performance.scoring import Work as ScoringWork
from benchmarks.performance.training import Work as TrainingWork
from benchmarks.performance.training import fresh, make_work
from benchmarks.performance.workload import DATA, MODELS, prepared, shape_of
from scpo_ray.attention import LONGEST_BY_PRODUCTS
from scpo_ray.core.batching import families_of, packed_batches, token_budget_batches
from scpo_ray.core.model_size import forward_flops
from scpo_ray.narrowing import narrow_encoder
from scpo_ray.packing import Packer, tokens_per_pass
from scpo_ray.runtime import connect
from scpo_ray.scoring import RewardScorer
from scpo_ray.stages import score
from scpo_ray.training.batches import InputsOf, PreferenceSet

EVERYTHING = "everything"
SIZES = {"minilm": (240, 16)}
"""Responses that are scored, and interactions of the training step."""
SIZES_OF_OTHERS = 40, 2


def main(folder: str, rounds: str = "5", conversations: str = "60", model: str = "minilm", data: str = "prism") -> None:
    """Measure; tables on stdout, all figures in FOLDER/steps_scoring_MODEL_DATA.json and steps_training_MODEL_DATA.json."""
    torch.set_num_threads(2)
    place = Path(folder).absolute()
    connect()
    known = prepared(place, int(conversations), model, data)
    score.run(known)
    num_responses, batch_size = SIZES.get(model, SIZES_OF_OTHERS)
    command = f"python -m benchmarks.performance.steps FOLDER {rounds} {conversations} {model} {data}"
    about = f"{MODELS[model]}, float32, {DATA[data].format(conversations=conversations)}, in one process: "
    about += f"{num_responses} responses, and a training step of {batch_size} interactions"
    work = Scoring(ScoringWork(known), num_responses)
    lessons = Training(make_work(place, int(conversations), 1, model, batch_size, data))
    for part, unit, ways, notes in (
        ("scoring", "tokens", work.ways(), work.predictions()),
        ("training", "pairs", lessons.ways(), lessons.predictions()),
    ):
        comparison = Comparison(f"Steps: {part}, {model}, {data}", command, unit, f"{about}.", notes=notes)
        comparison.run(ways, int(rounds), keep=place / f"steps_{part}_{model}_{data}.json")
        print(comparison.table())


class Scoring:
    """RewardScorer as it is, and without one thing each."""

    def __init__(self, work: ScoringWork, num_responses: int) -> None:
        rows = work.part.slice(0, num_responses)
        self._texts = rows["context"].to_pylist(), rows["response"].to_pylist()
        self._sequences = work.tokens_of(rows)
        self._shape = shape_of(work.config)
        folder = Path(work.directory.path("global_model"))
        make = partial(RewardScorer, folder, format_config=work.config.format, precision="float32", device="cpu")
        narrow = partial(make, precision="bfloat16")
        self._scorers = {EVERYTHING: make(), "batches of 16,384 tokens": make(tokens_per_batch=16_384)}
        with patch("scpo_ray.scoring.can_pack", lambda model: False):
            self._scorers["with padding"] = make(tokens_per_batch=2048)
            narrow_encoder(self._scorers["with padding"]._model)
        with _whole_last_layer():
            self._scorers["the last layer's MLP for all tokens"] = make()
        self._scorers["one pass after the other"] = make()
        self._scorers["one pass after the other"]._draws = True  # which is what keeps a scorer from two
        if self._scorers[EVERYTHING].shares:
            self._scorers["contexts once for each response"] = make()
            self._scorers["contexts once for each response"].shares = False
        self._scorers |= {"bfloat16": narrow(), "bfloat16, weights too": narrow()}
        _keep_products_bfloat16(self._scorers["bfloat16, weights too"]._model)

    def ways(self) -> dict[str, Callable[[], Measured]]:
        """Tokens of the responses, whatever is computed of them."""
        return {name: partial(self._measure, scorer) for name, scorer in self._scorers.items()}

    def _measure(self, scorer: RewardScorer) -> Measured:
        start = time.perf_counter()
        cost = scorer.score(*self._texts).cost
        return Measured(cost.num_tokens, time.perf_counter() - start)

    def predictions(self) -> dict[str, str]:
        """By FLOPs."""
        lengths = [len(sequence.input_ids) for sequence in self._sequences]
        total, shape = sum(lengths), self._shape
        padded = sum(
            max(lengths[row] for row in rows) * len(rows)
            for rows in token_budget_batches(lengths, tokens_per_batch=2048)
        )
        mean = sum(length * length for length in lengths) / total  # what attention's part grows with
        flops = forward_flops(shape, num_tokens=total, mean_length=mean)
        matrices = 3 if shape.gated_mlp else 2
        last = 2 * matrices * shape.hidden_size * shape.intermediate_size * total
        found = {
            "with padding": f"FLOPs predict {total / padded:.2f}",
            "the last layer's MLP for all tokens": f"FLOPs predict {(flops - last) / flops:.2f}",
            "one pass after the other": "as many FLOPs; threads wait for each other after every product",
            "bfloat16": "autocast: weights of products are made narrow in every pass",
            "bfloat16, weights too": "made narrow once; the same rewards to the bit",
            "batches of 16,384 tokens": "as many FLOPs; what a layer writes no longer stays in the caches",
        }
        if "contexts once for each response" in self._scorers:
            families = families_of([sequence.input_ids for sequence in self._sequences])
            saved = sum((number - 1) * shared for number, shared in families)
            found["contexts once for each response"] = f"FLOPs predict {(total - saved) / total:.2f}"
        return found


class Training:
    """One global batch forwards and backwards, and without one thing each."""

    def __init__(self, work: TrainingWork) -> None:
        self._work, (self._batch,) = work, work.steps
        preferences = [pair for item in self._batch for pair in item.pairs]
        data = PreferenceSet(work.sequences, preferences, batching="interactions")
        pairs = PreferenceSet(work.sequences, preferences, batching="pairs")
        packed = fresh(work)
        packer = Packer(packed)
        padded = fresh(work)
        narrow_encoder(padded)
        self._most = tokens_per_pass(packed.config.intermediate_size)
        self._ways: dict[str, tuple[nn.Module, PreferenceSet, InputsOf, int]] = {
            EVERYTHING: (packed, data, packer.inputs_of, self._most),
            "with padding": (padded, data, work.formatter.pad, self._most),
            "responses once for each of their pairs": (packed, pairs, packer.inputs_of, self._most),
            "passes twice as large": (packed, data, packer.inputs_of, 2 * self._most),
            "the batch in one pass": (packed, data, packer.inputs_of, 10**9),
        }
        in_order: InputsOf = lambda sequences: packer.pack(sequences, shares=True).inputs  # noqa: E731
        self._ways["responses in the batch's order"] = (packed, data, in_order, self._most)
        if packer.can_share:
            alone: InputsOf = lambda sequences: packer.pack(sequences, by_length=True).inputs  # noqa: E731
            self._ways["contexts once for each response"] = (packed, data, alone, self._most)

    def ways(self) -> Mapping[str, Callable[[], Measured]]:
        """Pairs of the batch."""
        found = {name: partial(self._measure, *way) for name, way in self._ways.items()}
        everything = partial(self._measure, *self._ways[EVERYTHING])
        found["torch's attention"] = partial(everything, longest={})
        found["bfloat16"] = partial(everything, bfloat16=True)
        found["bfloat16, torch's attention"] = partial(everything, bfloat16=True, longest={})
        found["bfloat16, passes twice as large"] = partial(
            self._measure, *self._ways["passes twice as large"], bfloat16=True
        )
        return found

    def _measure(
        self,
        model: nn.Module,
        data: PreferenceSet,
        inputs_of: InputsOf,
        most: int,
        *,
        bfloat16: bool = False,
        longest: Mapping[str, int] = LONGEST_BY_PRODUCTS,
    ) -> Measured:
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
            patch("scpo_ray.attention.LONGEST_BY_PRODUCTS", longest),
        ):
            start = time.perf_counter()
            num_pairs = backward(model, data.items, data, inputs_of, most=most)
            seconds = time.perf_counter() - start
        model.zero_grad()
        return Measured(num_pairs, seconds)

    def predictions(self) -> dict[str, str]:
        """By tokens."""
        _, data, _, most = self._ways[EVERYTHING]
        total = data.num_tokens
        lengths = [len(sequence.input_ids) for sequence in data.sequences]
        padded = 0
        for rows in packed_batches(data.lengths, tokens_per_batch=most):
            sizes = [lengths[index] for row in rows for index in data.items[row].responses]
            padded += max(sizes) * len(sizes)
        repeated = self._ways["responses once for each of their pairs"][1].num_tokens
        found = {
            "with padding": f"tokens predict {total / padded:.2f}",
            "responses once for each of their pairs": f"tokens predict {total / repeated:.2f}",
            "passes twice as large": f"{2 * most:,} tokens; as many FLOPs, and more memory",
            "the batch in one pass": "as many FLOPs, and more memory still",
            "torch's attention": "the fused kernel for all lengths",
            "bfloat16": "autocast",
            "bfloat16, torch's attention": "the fused kernel for all lengths",
            "bfloat16, passes twice as large": "as above",
            "responses in the batch's order": "as many FLOPs, in more calls: those of equal length no longer attend together",
        }
        if "contexts once for each response" in self._ways:
            shared = 0
            for item in data.items:
                families = families_of([data.sequences[index].input_ids for index in item.responses])
                shared += sum((number - 1) * each for number, each in families)
            found["contexts once for each response"] = f"tokens predict {(total - shared) / total:.2f}"
        return found


def _keep_products_bfloat16(model: nn.Module) -> None:
    """Of linear layers, but the head's."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.partition(".")[0] not in ("score", "classifier"):
            module.to(torch.bfloat16)


@contextlib.contextmanager
def _whole_last_layer() -> Iterator[None]:
    """Packers that are made meanwhile pick the tokens that are read after the last layer, not before its MLP."""

    def encoder(model: nn.Module, rows: Callable[[], Any] = lambda: slice(0, 1)) -> None:
        last = model.base_model.encoder.layer[-1]
        last.output.register_forward_hook(lambda _, inputs, output: output[:, rows()])

    def decoder(layer: nn.Module, rows: Callable[[], Any]) -> None:
        return

    with patch("scpo_ray.packing.narrow_encoder", encoder), patch("scpo_ray.packing.narrow_decoder", decoder):
        yield


if __name__ == "__main__":
    main(*sys.argv[1:])
