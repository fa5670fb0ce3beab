"""What torch.compile would bring: the bare model's passes beside those of the same model compiled.

python -m benchmarks.performance.compiled FOLDER [ROUNDS [MODEL]]

MODEL (workload.py) on batches of eight lengths that pad nothing, in float32 and under bfloat16's autocast, forwards and
forwards with backwards. It is compiled for batches of any shape; the seconds that this takes are said, and not counted. Frozen
weights are constants of the compiled code, in the order that its products read them; another model's cannot take their place.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks.performance.rounds import Comparison, Measured
from benchmarks.performance.workload import MODELS, bare_model, peaks, prepared, shape_of
from scpo_ray import models
from scpo_ray.artifacts import RunDirectory
from scpo_ray.core.model_size import TransformerShape, forward_flops, training_flops
from scpo_ray.runtime import connect

LENGTHS, TOKENS = (40, 73, 128, 201, 300, 333, 400, 512), 2048


def main(folder: str, rounds: str = "5", model: str = "minilm") -> None:
    """Measure; tables on stdout, all figures in FOLDER/compiled_PART_MODEL.json."""
    torch.set_num_threads(2)
    connect()
    config = prepared(Path(folder).absolute(), 12, model)
    directory, model_shape, found = RunDirectory(config.run_dir), shape_of(config), peaks()
    bare, compiled, frozen = (fresh(directory) for _ in range(3))
    kinds = {
        "as it is": bare,
        "compiled": torch.compile(compiled, dynamic=True),
        "weights frozen": torch.compile(frozen, dynamic=True, options={"freezing": True}),
    }
    for part, trains in (("scoring", False), ("training", True)):
        ways: dict[str, Callable[[], Measured]] = {
            f"{name}{ending}": partial(passes, way, bfloat16=bfloat16, trains=trains)
            for bfloat16, ending in ((False, ""), (True, ", bfloat16"))
            for name, way in kinds.items()
            if not (trains and name == "weights frozen")
        }
        start = time.perf_counter()
        for way in ways.values():
            way()
        seconds = time.perf_counter() - start
        comparison = Comparison(
            f"torch.compile: {part}, {model}",
            f"python -m benchmarks.performance.compiled FOLDER {rounds} {model}",
            "tokens",
            f"{MODELS[model]}, batches of about {TOKENS:,} tokens without padding; autocast in bfloat16. Compiling and a first "
            f"round of all ways took {seconds:.0f} s.",
            flops=flops(model_shape, trains=trains),
            peaks=found,
        )
        comparison.run(ways, int(rounds), keep=Path(folder) / f"compiled_{part}_{model}.json")
        print(comparison.table())


def flops(shape: TransformerShape, *, trains: bool) -> float:
    """Of a token, in the mean over the batches."""
    totals = [TOKENS // length * length for length in LENGTHS]
    count = training_flops if trains else forward_flops
    each = (count(shape, num_tokens=total, mean_length=length) for total, length in zip(totals, LENGTHS, strict=True))
    return sum(each) / sum(totals)


def fresh(directory: RunDirectory) -> PreTrainedModel:
    """The bare model; nothing is dropped."""
    model = bare_model(directory)
    models.prepare_for_training(model, dropout=False, gradient_checkpointing=False, is_narrow=True)
    return model.eval()


def passes(model: Callable[..., object], *, bfloat16: bool, trains: bool) -> Measured:
    """One batch of each length."""
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(1000, 8000, (TOKENS // length, length), generator=draw) for length in LENGTHS]
    start = time.perf_counter()
    for batch in batches:
        with torch.set_grad_enabled(trains), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            rewards = model(input_ids=batch).logits
        if trains:
            rewards.sum().backward()
    return Measured(sum(batch.numel() for batch in batches), time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
