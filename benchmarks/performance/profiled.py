"""Where passes spend their time: torch.profiler's shares of their operators; and the tokenizer's speed beside it.

python -m benchmarks.performance.profiled FOLDER [MODEL [CONVERSATIONS]]

In float32, and under bfloat16's autocast: the bare passes of compiled.py; RewardScorer's, one after another, since those side by
side are in threads that the profiler does not see; the passes of training steps, without the optimiser; and pairs padded to the
longest with a mask, as TRL's trainer and a plain loop pass them. PRISM-shaped data. Shares are of the time that operators
take themselves, and of all of a kind: forwards, backwards.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid
from torch.profiler import ProfilerActivity, profile

from benchmarks.performance import scoring, training
from benchmarks.performance.batches import backward
from benchmarks.performance.compiled import fresh, passes
from benchmarks.performance.rounds import circumstances
from benchmarks.performance.workload import prepared
from scpo_ray.artifacts import RunDirectory
from scpo_ray.packing import Packer, tokens_per_pass
from scpo_ray.runtime import connect
from scpo_ray.scoring import RewardScorer

NUM_SHOWN, STEPS, PAIRS_PADDED = 7, 1, 8
KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "mkldnn_linear", "linear", "matmul"),
    "attention": ("attention", "softmax"),
    "copies": ("copy_", "_to_copy", "clone", "contiguous", "cat", "stack", "index", "gather", "embedding"),
}
"""Kind -> what an operator's name has of it; the first that fits."""


def main(folder: str, model: str = "minilm", conversations: str = "60") -> None:
    """Prints tables, keeps FOLDER/profiled.json."""
    torch.set_num_threads(2)
    connect()
    place = Path(folder).absolute()
    work = scoring.Work(prepared(place, int(conversations), model))
    lessons = training.make_work(place, int(conversations), STEPS, model, 16 if model == "minilm" else 4)
    print("| passes | precision | s | products | attention | copies | else |\n|---|---|---|---|---|---|---|")
    largest = {}
    for bfloat16 in (False, True):
        for name, way in ways(work, lessons, bfloat16=bfloat16).items():
            way()
            with profile(activities=[ProfilerActivity.CPU]) as found:
                way()
            own = Counter({event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()})
            precision = "bfloat16" if bfloat16 else "float32"
            print(f"| {name} | {precision} | {sum(own.values()):.1f} | {' | '.join(shares(own))} |", flush=True)
            largest[f"{name}, {precision}"] = own
    speed = tokens_per_s(work)
    (place / "profiled.json").write_text(
        json.dumps(circumstances() | {"seconds": largest, "tokenizer_tokens_per_s": speed}, indent=1) + "\n"
    )
    for name, own in largest.items():
        most = (f"{operator} {seconds / sum(own.values()):.1%}" for operator, seconds in own.most_common(NUM_SHOWN))
        print(f"\n{name}: {', '.join(most)}")
    print(f"\ntokenizer, all cores: {speed:,.0f} tokens/s")


def ways(work: scoring.Work, lessons: training.Work, *, bfloat16: bool) -> dict[str, Callable[[], object]]:
    """Name -> passes."""
    bare = fresh(RunDirectory(work.config.run_dir))
    scorer = RewardScorer(
        Path(work.directory.path("global_model")),
        format_config=work.config.format,
        precision="bfloat16" if bfloat16 else "float32",
        device="cpu",
    )
    scorer._draws = True  # which is what keeps a scorer from two passes at a time
    return {
        "bare, forwards": partial(passes, bare, bfloat16=bfloat16, trains=False),
        "scpo_ray, scoring": partial(scorer.score, work.part["context"].to_pylist(), work.part["response"].to_pylist()),
        "bare, forwards and backwards": partial(passes, bare, bfloat16=bfloat16, trains=True),
        "scpo_ray, a training step": partial(packed, lessons, bfloat16=bfloat16),
        "padded with a mask, forwards and backwards": partial(padded, lessons, bfloat16=bfloat16),
    }


def packed(work: training.Work, *, bfloat16: bool) -> None:
    """A global batch's gradients."""
    model = training.fresh(work)
    packer = Packer(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        most = tokens_per_pass(model.config.intermediate_size)
        backward(model, work.steps[0], work.data, packer.inputs_of, most=most)


def padded(work: training.Work, *, bfloat16: bool) -> None:
    """The batch's first pairs, both sides in one pass."""
    model = training.fresh(work)
    chosen, rejected = work.of_pairs(work.pairs[0][:PAIRS_PADDED])
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        rewards = model(**work.formatter.pad([*chosen, *rejected])).logits.squeeze(-1)
        loss = -logsigmoid(rewards[: len(chosen)] - rewards[len(chosen) :]).mean()
    loss.backward()


def shares(own: Counter[str]) -> list[str]:
    """Of each kind, and of everything else."""
    sums = Counter[str]()
    for operator, seconds in own.items():
        name = operator.removeprefix("aten::")
        fits = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
        sums[next(fits, "else")] += seconds
    return [f"{sums[kind] / sum(own.values()):.0%}" for kind in (*KINDS, "else")]


def tokens_per_s(work: scoring.Work) -> float:
    """From texts to formatted sequences, the best of three."""
    found = 0.0
    for _ in range(3):
        start = time.perf_counter()
        work.tokens_of(work.part)
        found = max(found, work.num_tokens / (time.perf_counter() - start))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
