"""Requests per second and latencies of the reward service on two cores, against two yardsticks.

python -m benchmarks.serve FOLDER [ROUNDS] [SERVICE ...]      # all services, or some: plain adapters-1 full-50 ...

- the ceiling: the bare scorer over the same texts, one pass after the other on all threads, no HTTP;
- one plain FastAPI process with one model, as other frameworks ship it.

Services of 1, 7 and 50 communities, as adapters on one base and as whole models (4 of them in memory), at 1, 16 and 64 callers;
all settings in turn, ROUNDS times (3), medians; the ceiling before each service, because machines have moods. Then the memory of
a replica with 1 and with 50 adapters. FOLDER keeps the models; `benchmarks/serve/README.md` has what was measured.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

import psutil

from benchmarks.serve.load import TOKEN, Seen, ask
from benchmarks.serve.runs import names, write_run
from benchmarks.serve.workload import NUM_RESPONSES, interactions, requests

NUMBERS, CALLERS = (1, 7, 50), (1, 16, 64)
NUM_REQUESTS = {1: 40, 16: 160, 64: 256}
THREADS = 2


SERVICES = ("plain", *(f"{kind}-{number}" for kind in ("adapters", "full") for number in NUMBERS))


def main(folder: str, rounds: str = "3", *services: str) -> None:
    """Everything; the tables on stdout, all figures in FOLDER/serve.json."""
    place = Path(folder).absolute()
    seen: dict[str, list[Seen]] = defaultdict(list)
    ceilings: list[float] = []
    memory: dict[str, tuple[float, float]] = {}
    write_run(place / "adapters-1", 1, adapters=True)  # the yardsticks' model too
    for each in range(int(rounds)):
        for service in services or SERVICES:
            ceilings.append(ceiling(place, seed=load_seed(each, 64)))
            print(f"ceiling {ceilings[-1]:.1f} requests/s", flush=True)
            if service == "plain":
                with_plain(place, each, seen)
            else:
                kind, number = service.split("-")
                with_service(place, kind, int(number), each, seen, memory)
        (place / "serve.json").write_text(
            json.dumps(
                {"ceilings": ceilings, "seen": {k: [vars(s) for s in v] for k, v in seen.items()}, "memory": memory}
            )
        )
    print(report(ceilings, seen, memory))


def ceiling(place: Path, *, seed: int) -> float:
    """Requests per second of the bare scorer, best batches, in a process of its own."""
    code = f"from benchmarks.serve.__main__ import bare; print(bare({str(place)!r}, {seed}))"
    return float(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def bare(place: str, seed: int) -> float:
    """The scorer of training time over one load's texts: batch after batch, all threads in each."""
    import torch

    from scpo_ray.config import FormatConfig
    from scpo_ray.core.batching import packed_batches
    from scpo_ray.scoring import RewardScorer

    torch.set_num_threads(THREADS)
    folder = Path(place) / "adapters-1/global_model"
    scorer = RewardScorer(folder, format_config=FormatConfig(), tokens_per_batch=1024, precision="float32")
    number = NUM_REQUESTS[64]
    contexts, responses = [], []
    for prompt, texts in interactions(number, seed=seed):
        contexts += [[{"role": "user", "content": prompt}]] * NUM_RESPONSES
        responses += texts
    scorer.score(contexts[:32], responses[:32])
    start = time.perf_counter()
    sequences = scorer.formatter.format(contexts, responses)
    for rows in packed_batches([len(sequence.input_ids) for sequence in sequences], tokens_per_batch=1024):
        scorer.forward([sequences[row] for row in rows])
    return number / (time.perf_counter() - start)


def with_plain(place: Path, each: int, seen: dict[str, list[Seen]]) -> None:
    """The plain server under every load."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serve.plain", str(place / "adapters-1/global_model"), str(port)]
    server = subprocess.Popen(command)
    try:
        wait_for(f"http://127.0.0.1:{port}/docs")
        load("plain", f"http://127.0.0.1:{port}", names(1), each, seen)
    finally:
        server.terminate()
        server.wait()


def with_service(
    place: Path, kind: str, number: int, each: int, seen: dict[str, list[Seen]], memory: dict[str, tuple[float, float]]
) -> None:
    """`serve run`, as a user starts it, under every load."""
    run = place / f"{kind}-{number}"
    write_run(run, number, adapters=kind == "adapters")
    tokens = place / "tokens.txt"
    tokens.write_text(TOKEN)
    arguments = [f"run_dir={run}", f"tokens_file={tokens}", f"threads={THREADS}"]
    command = [str(Path(sys.executable).with_name("serve")), "run", "serve.reward:app", *arguments]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with (place / "serve.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for("http://127.0.0.1:8000/healthz")
        load(f"{kind} {number}", "http://127.0.0.1:8000", names(number), each, seen)
        memory[f"{kind} {number}"] = replica_memory()
    finally:
        server.terminate()
        server.wait(60)
        time.sleep(3)  # its workers end after it


def load(label: str, url: str, communities: list[str], each: int, seen: dict[str, list[Seen]]) -> None:
    """All numbers of callers, with texts that the service has not seen."""
    ask(url, requests(8, communities, seed=10_000 + each), concurrency=4)  # warm
    for callers in CALLERS:
        bodies = requests(NUM_REQUESTS[callers], communities, seed=load_seed(each, callers))
        found = ask(url, bodies, concurrency=callers)
        seen[f"{label}, {callers} callers"].append(found)
        print(f"{label}, {callers} callers: {found}", flush=True)


def load_seed(each: int, callers: int) -> int:
    """Of a load's texts: the ceiling scores those of the largest."""
    return 100 * each + callers


def replica_memory() -> tuple[float, float]:
    """MiB of the replica: what is its own, and what is mapped from files, which the kernel can take back."""
    for process in psutil.process_iter(["cmdline"]):
        if "ServeReplica" in " ".join(process.info["cmdline"] or ()):
            status = Path(f"/proc/{process.pid}/status").read_text()
            kib = {name: int(value) for name, value in re.findall(r"(\w+):\s+(\d+) kB", status)}
            return kib["RssAnon"] / 1024, kib["RssFile"] / 1024
    raise RuntimeError("no replica")


def report(ceilings: list[float], seen: dict[str, list[Seen]], memory: dict[str, tuple[float, float]]) -> str:
    """The table of benchmarks/serve/README.md."""
    top = statistics.median(ceilings)
    lines = [
        f"ceiling: {top:.1f} requests/s ({min(ceilings):.1f} to {max(ceilings):.1f})",
        "| service | requests/s | of the ceiling | p50 ms | p95 ms | p99 ms |",
        "|---|---|---|---|---|---|",
    ]
    for label, rounds in seen.items():
        speed, p50, p95, p99 = (
            statistics.median(getattr(one, name) for one in rounds)
            for name in ("requests_per_s", "p50_ms", "p95_ms", "p99_ms")
        )
        lines.append(f"| {label} | {speed:.1f} | {speed / top:.0%} | {p50:.0f} | {p95:.0f} | {p99:.0f} |")
    lines += [
        f"memory of a replica, {label}: {own:.0f} MiB, and {mapped:.0f} MiB of files"
        for label, (own, mapped) in memory.items()
    ]
    return "\n".join(lines)


def wait_for(url: str) -> None:
    """Until somebody answers."""
    end = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def free_port() -> int:
    """Of this machine."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    main(*sys.argv[1:])
