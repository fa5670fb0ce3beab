"""Which of TRL's settings is the fastest here: RewardTrainer with several sizes of batches, by length and at random.

python -m benchmarks.performance.trl_settings FOLDER [ROUNDS [STEPS [CONVERSATIONS [MODEL [BATCH [DATA]]]]]]

The pairs and updates of training.py, in float32 without checkpointing of gradients.
"""

import sys
from functools import partial
from pathlib import Path

import torch

from benchmarks.performance.rounds import Comparison
from benchmarks.performance.training import TRL_BATCH, Learned, make_work, with_trl
from benchmarks.performance.workload import DATA, MODELS
from scpo_ray.runtime import connect

BATCHES, ORDERS = (TRL_BATCH, 4, 16, 32), ("group_by_length", "random")


def main(
    folder: str,
    rounds: str = "5",
    steps: str = "4",
    conversations: str = "200",
    model: str = "minilm",
    batch_size: str = "16",
    data: str = "prism",
) -> None:
    """Measure; the table on stdout, all figures in FOLDER/trl_settings_MODEL_DATA.json."""
    torch.set_num_threads(2)
    connect()
    work = make_work(Path(folder).absolute(), int(conversations), int(steps), model, int(batch_size), data)
    losses = dict.fromkeys(("TRL",), Learned(0.0, 0.0, 0))  # nothing is tested
    ways = {
        f"{size} pairs a batch, {order}": partial(with_trl, work, losses, bfloat16=False, batch_size=size, order=order)
        for order in ORDERS
        for size in BATCHES
    }
    comparison = Comparison(
        f"TRL's settings: {model}, {data}",
        f"python -m benchmarks.performance.trl_settings FOLDER {rounds} {steps} {conversations} {model} {batch_size} {data}",
        "pairs",
        f"{MODELS[model]}, float32, {work.num_pairs:,} pairs in {steps} steps, of "
        f"{DATA[data].format(conversations=conversations)}.",
        notes={name: f"{work.num_updates(way.keywords['batch_size'])} updates" for name, way in ways.items()},
    )
    comparison.run(ways, int(rounds), keep=Path(folder) / f"trl_settings_{model}_{data}.json")
    print(comparison.table())


if __name__ == "__main__":
    main(*sys.argv[1:])
