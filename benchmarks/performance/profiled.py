"""Where a bare pass spends its time: torch.profiler's shares of its operators; and the tokenizer's speed beside it.

python -m benchmarks.performance.profiled FOLDER [MODEL [CONVERSATIONS]]

The passes of compiled.py, forwards and forwards with backwards, in float32 and in bfloat16; tables on stdout. The texts that
are made tokens are PRISM-shaped, on all cores.
"""

import sys
import time
from itertools import product
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.performance.compiled import fresh, passes
from benchmarks.performance.scoring import Work
from benchmarks.performance.workload import prepared
from scpo_ray.artifacts import RunDirectory
from scpo_ray.runtime import connect

NUM_SHOWN = 8


def main(folder: str, model: str = "minilm", conversations: str = "12") -> None:
    """Measure."""
    torch.set_num_threads(2)
    connect()
    config = prepared(Path(folder).absolute(), int(conversations), model)
    bare = fresh(RunDirectory(config.run_dir))
    for trains, bfloat16 in product((False, True), repeat=2):
        passes(bare, bfloat16=bfloat16, trains=trains)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            passes(bare, bfloat16=bfloat16, trains=trains)
        events = sorted(found.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
        total = sum(event.self_cpu_time_total for event in events)
        print(f"{'forwards and backwards' if trains else 'forwards'}, {'bfloat16' if bfloat16 else 'float32'}")
        for event in events[:NUM_SHOWN]:
            print(f"{event.self_cpu_time_total / total:6.1%}  {event.key}")
    print(f"tokenizer: {tokens_per_s(Work(config)):,.0f} tokens/s")


def tokens_per_s(work: Work) -> float:
    """From texts to formatted sequences, the best of three."""
    found = 0.0
    for _ in range(3):
        start = time.perf_counter()
        sequences = work.tokens_of(work.part)
        seconds = time.perf_counter() - start
        found = max(found, sum(len(sequence.input_ids) for sequence in sequences) / seconds)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
