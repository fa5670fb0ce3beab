"""Callers that ask without a pause, and what they saw."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp
import numpy as np

TOKEN = "a-token-for-benchmarks-alone"


@dataclass(frozen=True)
class Seen:
    """Of one load."""

    requests_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def ask(url: str, bodies: Iterable[dict], *, concurrency: int) -> Seen:
    """Every body once, `concurrency` at a time.

    Raises:
        RuntimeError: a request was not answered with 200.
    """
    return asyncio.run(_ask(url, list(bodies), concurrency))


async def _ask(url: str, bodies: list[dict], concurrency: int) -> Seen:
    latencies: list[float] = []
    waiting = iter(bodies)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:

        async def caller() -> None:
            for body in waiting:
                start = time.perf_counter()
                async with session.post(f"{url}/v1/score", json=body) as answer:
                    text = await answer.read()
                    if answer.status != 200:
                        raise RuntimeError(f"{answer.status}: {text[:200]!r}")
                latencies.append(time.perf_counter() - start)

        start = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(concurrency)))
        seconds = time.perf_counter() - start
    p50, p95, p99 = (1000 * float(value) for value in np.quantile(latencies, [0.5, 0.95, 0.99]))
    return Seen(len(bodies) / seconds, p50, p95, p99)
