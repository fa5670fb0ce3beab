"""How time and memory of the stages without a model grow with the number of pairs: prepare, select, evaluate.

python -m benchmarks.pairs FOLDER [ROUNDS [CONVERSATIONS ...]]     # about 8.3 pairs a conversation; 400 to 120,000 by default

PRISM-shaped files (benchmarks/prism.py) go through the jobs as a user would start them, each in a process of its own.
Nothing is trained, and nothing scored: eight small models take rewards that lie in the score cache already, so what is
measured is everything else. Memory is the peak of the job and all its processes together, Ray's among them: what they hold for
themselves, and beside it what is resident at all. Sizes take turns; the table has medians.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.performance.rounds import circumstances
from benchmarks.prism import MINORITIES, write_prism
from scpo_ray import models
from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import dump_yaml
from scpo_ray.config import Config, ModelConfig
from scpo_ray.records import SCORES, ModelName
from scpo_ray.stages import evaluate, recipes
from scpo_ray.stages.global_model import global_model_address
from scpo_ray.stages.scoring_job import cache_address, open_cache

SIZES = (400, 1200, 12_000, 120_000)
"""With fewer than 400 a community has no test pairs."""
STAGES = ("prepare", "select", "evaluate")
_POLL_S = 0.2


def main(folder: str, rounds: str = "5", *sizes: str) -> None:
    """Measure every size, in turn; print a table, keep FOLDER/pairs.json."""
    place = Path(folder).absolute()
    found: dict[int, list[dict]] = {int(size): [] for size in sizes or SIZES}
    for _ in range(int(rounds)):
        for size, known in found.items():
            known.append(measured(place, size))
            (place / "pairs.json").write_text(json.dumps(circumstances() | {"sizes": found}, indent=1) + "\n")
    print(table(list(found.values())))


def table(sizes: Sequence[Sequence[dict]]) -> str:
    """Markdown: medians over the rounds of each size; of all three stages together, the fastest and the slowest round too."""
    lines = [
        f"| pairs | responses | {' | '.join(f'{stage}, s | GiB' for stage in STAGES)} | together, s | peak, GiB "
        "| with shared and mapped, GiB |",
        "|---|---|" + "---|" * (2 * len(STAGES) + 3),
    ]
    for rounds in sizes:
        each = (
            f"{median(one[stage]['seconds'] for one in rounds):.1f} | {median(one[stage]['gib'] for one in rounds):.2f}"
            for stage in STAGES
        )
        seconds = [sum(one[stage]["seconds"] for stage in STAGES) for one in rounds]
        own, resident = (
            median(max(one[stage][name] for stage in STAGES) for one in rounds) for name in ("gib", "resident_gib")
        )
        lines.append(
            f"| {rounds[0]['pairs']:,} | {rounds[0]['responses']:,} | {' | '.join(each)} | {median(seconds):.1f} "
            f"({min(seconds):.1f} to {max(seconds):.1f}) | {own:.2f} | {resident:.2f} |"
        )
    return "\n".join(lines)


def measured(place: Path, num_conversations: int) -> dict:
    """One size, from files to tables."""
    own = place / str(num_conversations)
    size = write_prism(own / "prism", num_conversations)
    for made in ("run", "score_cache"):  # by an earlier round
        shutil.rmtree(own / made, ignore_errors=True)
    model = own / "model"
    if not model.exists():
        made = models.make(ModelConfig(), texts=["a model that is never asked"], max_tokens=512, seed=0)
        models.save(made.model, made.tokenizer, model)
    config = Config(
        run_dir=str(own / "run"),
        rebuild=True,
        prepare={"datasets": ["prism"], "prism": {"path": str(own / "prism")}},
        train_global={"model": str(model), "epochs": 0},
        score={"precision": "float32"},
    )
    file = own / "config.yaml"
    file.write_text(dump_yaml(config))
    row: dict = {"responses": size["responses"], "prepare": _run("prepare", file)}
    _run("train_global", file)
    directory = RunDirectory(config.run_dir)
    responses = directory.read_table("prepared/responses.parquet", columns=["response_id"])["response_id"]
    row["pairs"] = directory.require("prepared", job="prepare").statistics["num_pairs"]
    _know_scores(config, Path(global_model_address(directory)), responses, seed=0)
    _run("score", file)
    row["select"] = _run("select", file)
    _write_models(config, directory, model)
    row["evaluate"] = _run("evaluate", file)
    return row


def _run(stage: str, config: Path) -> dict[str, float]:
    """One job: seconds, and the peaks of its processes' memory."""
    start, own, resident = time.monotonic(), 0, 0
    job = subprocess.Popen([sys.executable, f"jobs/{stage}.py", "--config", str(config)])
    while job.poll() is None:
        found = _memory(job.pid)
        own, resident = max(own, found[0]), max(resident, found[1])
        time.sleep(_POLL_S)
    if job.returncode:
        sys.exit(f"{stage} failed")
    return {"seconds": time.monotonic() - start, "gib": own / 2**30, "resident_gib": resident / 2**30}


def _memory(pid: int) -> tuple[int, int]:
    """Bytes of a process and all below it: those that no other process holds, and all, shared ones once for each process and
    mapped files with what of them was read."""
    own = resident = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            found = process.memory_full_info()
        except psutil.Error:
            continue
        own, resident = own + found.uss, resident + found.rss
    return own, resident


def _know_scores(config: Config, model: Path, responses: pa.ChunkedArray, *, seed: int) -> None:
    """Rewards of all responses into the cache, as if the model had been asked."""
    cache = open_cache(cache_address(config), model, config.format, config.score, dropout=False)
    size = len(responses)
    columns = {
        "response_id": responses,
        "model_hash": [cache.model_hash] * size,
        "reward": np.random.default_rng(seed).normal(size=size).astype(np.float32),
        "num_tokens": np.full(size, 128, np.int32),
        "truncated": np.zeros(size, bool),
    }
    cache.append(pa.table(columns, schema=SCORES))


def _write_models(config: Config, directory: RunDirectory, model: Path) -> None:
    """A model for every community, which differs from the others in nothing but its hash, with rewards of its own."""
    config = config.model_copy(update={"rebuild": False})
    inputs = evaluate.load_inputs(config, directory)
    for number, community in enumerate(MINORITIES):
        arm = config.select.arms[0]
        name = ModelName(arm.name, community)
        recipe = recipes.reward_model(config, directory, arm, name)
        with recipe.making(directory) as draft:
            for path in model.iterdir():
                (draft.folder / path.name).write_bytes(path.read_bytes())
            settings = json.loads((draft.folder / "config.json").read_text())
            (draft.folder / "config.json").write_text(json.dumps(settings | {"community": number}))
        folder = Path(directory.path(recipe.name))
        _know_scores(config, folder, evaluate.responses_to_score(config, inputs, name), seed=number + 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
