"""Attention by products beside torch's fused kernel, by length: what scpo_ray/attention.py's limits are from.

python -m benchmarks.performance.attention FOLDER

Forwards and backwards, about 1,200 tokens, 12 heads, laid out as a layer hands them over. Prints how many times as long the fused
kernel takes, the median of nine turns each; keeps them in FOLDER/attention.json.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks.performance.rounds import circumstances
from scpo_ray import attention

LENGTHS, TOKENS, HEADS = (20, 50, 100, 200, 300, 400, 512, 768), 1200, 12


def main(folder: str) -> None:
    """Prints a table."""
    kept: dict[str, list[float]] = {}
    torch.set_num_threads(2)
    attention.LONGEST_BY_PRODUCTS.update(float32=max(LENGTHS), bfloat16=max(LENGTHS))
    print(f"| precision | attention | size of a head | {' | '.join(map(str, LENGTHS))} |")
    print("|---|---|---|" + "---|" * len(LENGTHS))
    for dtype in (torch.float32, torch.bfloat16):
        for is_causal in (False, True):
            for size in (32, 64):
                found = [ratio(length, size, dtype, is_causal=is_causal) for length in LENGTHS]
                row = f"{str(dtype).removeprefix('torch.')} | {'causal' if is_causal else 'full'} | {size}"
                print(f"| {row} | {' | '.join(f'{one:.1f}' for one in found)} |", flush=True)
                kept[row.replace(" |", ",")] = found
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / "attention.json").write_text(
        json.dumps(circumstances() | {"lengths": LENGTHS, "ratios": kept}, indent=1) + "\n"
    )


def ratio(length: int, size: int, dtype: torch.dtype, *, is_causal: bool) -> float:
    """The fused kernel's time beside the products'."""
    number = max(1, TOKENS // length)
    flat = [torch.randn(number * length, HEADS * size, dtype=dtype, requires_grad=True) for _ in range(3)]
    towards = torch.randn(number, HEADS, length, size, dtype=dtype)

    def seconds(attend) -> float:
        states = (
            each.unflatten(1, (HEADS, size)).transpose(0, 1).unflatten(1, (number, length)).transpose(0, 1)
            for each in flat
        )
        start = time.perf_counter()
        torch.autograd.grad(attend(*states, is_causal=is_causal), flat, towards)
        return time.perf_counter() - start

    ways = functional.scaled_dot_product_attention, attention.attend
    for way in ways:
        seconds(way)
    turns = ([seconds(way) for way in ways] for _ in range(9))
    return statistics.median(fused / products for fused, products in turns)


if __name__ == "__main__":
    main(*sys.argv[1:])
