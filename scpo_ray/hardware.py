"""What devices do at best: published for GPUs, measured for this machine's CPUs."""

import functools
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """Of one worker: a GPU, or the CPU cores of a machine together."""

    name: str
    flops: float
    """Of dense matrix products in the precision used, per second."""
    memory_bytes: float | None = None
    scoring_utilization: float = 0.4
    """Share of `flops` that scoring reaches; assumed, as the next one, but for a CPU's training: there it is the median of ten
    trainings of a MiniLM (27% to 36%, `python -m benchmarks.scale`)."""
    training_utilization: float = 0.3


GPUS = {
    "H100": Device("H100", 989e12, 80e9),
    "H200": Device("H200", 989e12, 141e9),
    "A100": Device("A100", 312e12, 40e9),
    "A100-80G": Device("A100-80G", 312e12, 80e9),
    "L40S": Device("L40S", 362e12, 48e9),
    "L4": Device("L4", 121e12, 24e9),
}
"""Ray's accelerator type -> dense bfloat16 FLOPs per second and memory, from the vendor's data sheets."""


def gpu(accelerator: str | None) -> Device | None:
    """By Ray's accelerator type; None for one that is not in the table."""
    return GPUS.get(accelerator or "")


@functools.cache
def cpu(*, bfloat16: bool) -> Device:
    """This machine's cores together, by a quick product of matrices (0.1 s)."""
    dtype, size = torch.bfloat16 if bfloat16 else torch.float32, 1024
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = 0.0
    end = time.perf_counter() + 0.1
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return Device("this CPU", best, None, scoring_utilization=0.5, training_utilization=0.32)
