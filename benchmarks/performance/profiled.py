"""Where a bare pass spends its time: torch.profiler's shares of its operators.

python -m benchmarks.performance.profiled FOLDER [MODEL [CONVERSATIONS]]

The passes of compiled.py, forwards and forwards with backwards, in float32 and in bfloat16; tables on stdout.
"""

import sys
from itertools import product
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.performance.compiled import fresh, passes
from benchmarks.performance.workload import prepared
from scpo_ray.artifacts import RunDirectory
from scpo_ray.runtime import connect

NUM_SHOWN = 8


def main(folder: str, model: str = "minilm", conversations: str = "12") -> None:
    """Measure."""
    torch.set_num_threads(2)
    connect()
    bare = fresh(RunDirectory(prepared(Path(folder).absolute(), int(conversations), model).run_dir))
    for trains, bfloat16 in product((False, True), repeat=2):
        passes(bare, bfloat16=bfloat16, trains=trains)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            passes(bare, bfloat16=bfloat16, trains=trains)
        events = sorted(found.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
        total = sum(event.self_cpu_time_total for event in events)
        print(f"{'forwards and backwards' if trains else 'forwards'}, {'bfloat16' if bfloat16 else 'float32'}")
        for event in events[:NUM_SHOWN]:
            print(f"{event.self_cpu_time_total / total:6.1%}  {event.key}")


if __name__ == "__main__":
    main(*sys.argv[1:])
