"""What devices do at best: published for GPUs, measured for this machine's CPUs."""

import functools
import time
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Device:
    """Of one worker: a GPU, or the CPU cores of a machine together."""

    name: str
    flops: float
    """Of dense matrix products in the precision used, per second."""
    memory_bytes: float | None = None
    bytes_per_second: float = 0.0
    """Of reading its memory."""
    float32_flops: float | None = None
    """As `flops`, without tensor cores, as torch multiplies float32; None: `flops` are of that already."""
    scoring_utilization: float = 0.4
    """Share of `flops` that scoring reaches; assumed, as the next one, but for CPUs: there both are what a MiniLM reaches on
    GlobalOpinionQA (docs/performance.md)."""
    training_utilization: float = 0.3


GPUS = {
    "H100": Device("H100", 989e12, 80e9, 3.35e12, 67e12),
    "H200": Device("H200", 989e12, 141e9, 4.8e12, 67e12),
    "A100": Device("A100", 312e12, 40e9, 1.555e12, 19.5e12),
    "A100-80G": Device("A100-80G", 312e12, 80e9, 2.039e12, 19.5e12),
    "L40S": Device("L40S", 362e12, 48e9, 0.864e12, 91.6e12),
    "L4": Device("L4", 121e12, 24e9, 0.3e12, 30.3e12),
}
"""Ray's accelerator type -> dense bfloat16 FLOPs per second, memory, its bandwidth, float32 FLOPs; from the vendor's data
sheets."""


def gpu(accelerator: str | None, *, bfloat16: bool) -> Device | None:
    """By Ray's accelerator type; None for one that is not in the table."""
    found = GPUS.get(accelerator or "")
    if found is None or bfloat16 or found.float32_flops is None:
        return found
    return replace(found, flops=found.float32_flops)


@functools.cache
def cpu(*, bfloat16: bool) -> Device:
    """This machine's cores together, by products of matrices and a quick sum (0.5 s)."""
    dtype, size = torch.bfloat16 if bfloat16 else torch.float32, 1024
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = 0.0
    end = time.perf_counter() + 0.5  # long enough to be undisturbed once: other tenants halve the speed for moments
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    scoring, training = _CPU_UTILIZATION[dtype]
    return Device(
        "this CPU", best, None, _bytes_per_second(), scoring_utilization=scoring, training_utilization=training
    )


_CPU_UTILIZATION = {torch.float32: (0.77, 0.72), torch.bfloat16: (0.53, 0.50)}
"""In scoring and in training (see `Device`). Products in bfloat16 are faster, what lies between them is not."""


def _bytes_per_second() -> float:
    """Of reading 64 MiB of this machine's memory, the best of three."""
    values = torch.ones(2**24)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - start)
    return values.nbytes / min(seconds)
