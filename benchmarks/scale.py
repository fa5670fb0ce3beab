"""The cost model against finished runs, and carried to sizes that nobody here has run.

python -m benchmarks.scale RUN_DIR [RUN_DIR ...]      # runs made on this machine, by CPU

Prints tables. The first compares the plans, as they were before anything had been scored, with what the runs' manifests say
that was computed, and in which time; the others are arithmetic.
"""

import argparse
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from scpo_ray import hardware, ledger
from scpo_ray.artifacts import RunDirectory
from scpo_ray.capacity import capacity
from scpo_ray.config import Config
from scpo_ray.core.model_size import (
    TransformerShape,
    activation_bytes,
    cache_bytes,
    decoding_seconds,
    forward_flops,
    gradient_traffic_bytes,
    state_bytes,
    synchronization_bytes,
    training_flops,
)
from scpo_ray.core.project_cost import World, project_cost
from scpo_ray.precision import resolved_precision
from scpo_ray.stages.estimate import read_data
from scpo_ray.stages.plan import estimate
from scpo_ray.stages.policy_estimate import policy_training

GIB, TIB = 2**30, 2**40
MODELS = {
    "1B": TransformerShape(16, 2048, 8192, 32, 8, 64, 128256),
    "8B": TransformerShape(32, 4096, 14336, 32, 8, 128, 128256),
    "70B": TransformerShape(80, 8192, 28672, 64, 8, 128, 128256),
}
"""Llama 3's shapes."""
LORA_RANK = 16
PPO_STEPS, PPO_RESPONSES, PROMPT_TOKENS, RESPONSE_TOKENS = 200, 256, 200, 256
MEASURED = 512 * 4
"""Responses of each policy that are measured: `ppo.evaluation`'s defaults."""
NETWORK_BYTES_PER_S = 50e9
"""400 Gbit/s between nodes."""


def main(*run_dirs: str, pairs: float, price: float) -> None:
    """Every table, on stdout."""
    print("## Against finished runs\n")
    print("| run | stage | tokens, planned / counted | seconds, planned / taken | of the peak |")
    print("|---|---|---|---|---|")
    for run_dir in run_dirs:
        print("".join(f"{row}\n" for row in (*checked(run_dir), *checked_policies(run_dir))), end="")
    print("\n## On paper\n")
    print("\n".join(memory_table()))
    print()
    print("\n".join(hours_table(pairs, price)))
    print()
    print("\n".join(policies_table()))


def checked(run_dir: str) -> Iterator[str]:
    """Stages of a run beside the plan that `--dry-run` shows before anything is scored: nothing that the run has counted
    is known to it."""
    config = Config.model_validate(_settings(run_dir))
    peaks = {
        "score": config.score,
        "evaluate": config.score,
        "train": config.train,
        "train_global": config.train_global,
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "prepared").symlink_to(Path(run_dir, "prepared").absolute())
        before = RunDirectory(folder)
        planned = {stage: estimate(config, before, stage, capacity()) for stage in peaks}
    for record in ledger.records(run_dir):
        plan = planned.get(record.stage)
        if plan is None or plan.seconds is None or not record.num_tokens:
            continue
        bfloat16 = resolved_precision(peaks[record.stage].precision, on_gpu=False) == "bfloat16"
        reached = plan.flops * record.num_tokens / plan.num_tokens / record.wall_time_s
        row = _row(
            Path(run_dir).name, record.stage, plan.num_tokens, record.num_tokens, plan.seconds, record.wall_time_s
        )
        yield f"{row} {reached / hardware.cpu(bfloat16=bfloat16).flops:.0%} |"


def checked_policies(run_dir: str) -> Iterator[str]:
    """The training of a run's policies, all together. What is planned is at most: every response as long as it may be."""
    config, directory = Config.model_validate(_settings(run_dir)), RunDirectory(run_dir)
    names = directory.names("policies")
    data = read_data(config, directory, batching=config.train.batching) if names else None
    if data is None:
        return
    planned = policy_training(config, directory, data, capacity())  # a run does not note what measuring takes
    if planned.seconds is None:
        return
    steps = [step for name in names for step in directory.read_json(f"policies/{name}/metrics.json")["steps"]]
    tokens = sum(step["tokens_per_second"] * step["seconds"] for step in steps)
    seconds = sum(step["seconds"] for step in steps)
    yield _row(Path(run_dir).name, "PPO", planned.num_tokens, tokens, planned.seconds, seconds) + " |"


def _settings(run_dir: str) -> dict:
    return yaml.safe_load(Path(run_dir, "config.yaml").read_text()) | {"run_dir": run_dir}


def _row(run: str, stage: str, planned: float, counted: float, seconds: float, wall: float) -> str:
    errors = planned / counted - 1, seconds / wall - 1
    tokens, time = f"{planned:,.0f} / {counted:,.0f}", f"{seconds:.1f} / {wall:.1f}"
    return f"| {run} | {stage} | {tokens} ({errors[0]:+.0%}) | {time} ({errors[1]:+.0%}) |"


def memory_table() -> Iterator[str]:
    """Per GPU: weights, gradients and moments by ZeRO stage on 8 of them, activations, caches, traffic."""
    yield "| model | parameters | ZeRO 0 | 1 | 2 | 3 | LoRA, ZeRO 3 | activations | cache, 64 x 1024 | traffic per step, ZeRO 3 |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, shape in MODELS.items():
        full = [
            state_bytes(shape.num_parameters, num_trained=shape.num_parameters, zero_stage=s, num_devices=8)
            for s in range(4)
        ]
        adapters = shape.num_adapter_parameters(LORA_RANK)
        lora = state_bytes(shape.num_parameters, num_trained=adapters, zero_stage=3, num_devices=8)
        kept = activation_bytes(
            shape, num_tokens=8 * 512, length=512, bytes_per_value=2, checkpointing=True, num_scores=0
        )
        cache = cache_bytes(shape, num_tokens=64 * 1024, bytes_per_value=2)
        traffic = gradient_traffic_bytes(
            shape.num_parameters, num_trained=shape.num_parameters, zero_stage=3, num_devices=8
        )
        sizes = [*full, lora, kept, cache, traffic]
        yield (
            f"| {name} | {shape.num_parameters / 1e9:.2f} B | "
            + " | ".join(f"{size / GIB:,.0f} GiB" for size in sizes)
            + " |"
        )


def hours_table(pairs: float, price: float) -> Iterator[str]:
    """Reward models of every community, H100 hours."""
    device = hardware.GPUS["H100"]
    speeds = {
        "scoring_flops_per_s": device.flops * device.scoring_utilization,
        "training_flops_per_s": device.flops * device.training_utilization,
    }
    yield "| communities | model | score once | train, full | train, LoRA | evaluate | sum, LoRA | price | on disk, full / LoRA |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for number in (7, 50, 195):
        for name, shape in MODELS.items():
            world = World(number, pairs_per_community=pairs)
            full, lora = (project_cost(shape, world, **speeds, lora_rank=rank) for rank in (None, LORA_RANK))
            yield (
                f"| {number} | {name} | {lora.scoring_hours:,.1f} h | {full.training_hours:,.1f} h | "
                f"{lora.training_hours:,.1f} h | {lora.evaluation_hours:,.1f} h | {lora.hours:,.1f} | "
                f"${lora.price(price):,.0f} | {full.adapter_bytes / TIB:,.2f} / {lora.adapter_bytes / TIB:.3f} TiB |"
            )


def policies_table() -> Iterator[str]:
    """PPO for one community through LoRA, H100 hours: an 8-GPU learner group beside as many engines as hold the model."""
    device = hardware.GPUS["H100"]
    yield (
        "| policy | GPUs, engine | its KV cache | writing | scoring | learning | 195 policies | their evaluation "
        "| weights to an engine | time |"
    )
    yield "|" + "---|" * 10
    length, number = PROMPT_TOKENS + RESPONSE_TOKENS, PPO_STEPS * PPO_RESPONSES
    for name, shape in MODELS.items():
        weights = 2 * (shape.num_parameters + shape.hidden_size * shape.vocab_size)
        cache = cache_bytes(shape, num_tokens=PPO_RESPONSES * length, bytes_per_value=2)
        gpus = next(count for count in (1, 2, 4, 8) if weights + cache < 0.85 * device.memory_bytes * count)
        writing = gpus * decoding_seconds(
            shape,
            num_tokens=number * RESPONSE_TOKENS,
            num_concurrent=PPO_RESPONSES,
            mean_length=PROMPT_TOKENS + RESPONSE_TOKENS / 2,
            bytes_per_value=2,
            bytes_per_second=gpus * device.bytes_per_second,
        )
        sizes = {"num_tokens": number * length, "mean_length": length}
        forward = forward_flops(shape, **sizes, lm_head=True)
        scoring = forward_flops(shape, **sizes) / device.flops / device.scoring_utilization
        update = training_flops(shape, **sizes, lm_head=True, checkpointing=True, lora_rank=LORA_RANK)
        learning = 2 * forward / device.flops / device.scoring_utilization
        learning += 2 * update / device.flops / device.training_utilization
        read = forward_flops(shape, num_tokens=MEASURED * length, mean_length=length) * 195 * 196
        measuring = read / device.flops / device.scoring_utilization / 3600
        moved = synchronization_bytes(shape.num_parameters, num_engines=1, bytes_per_value=2)
        hours = [seconds / 3600 for seconds in (writing, scoring, learning)]
        yield (
            f"| {name} | {gpus} | {cache / GIB:,.0f} GiB | "
            + " | ".join(f"{each:,.1f} h" for each in hours)
            + f" | {195 * sum(hours):,.0f} h | {measuring:,.0f} h | "
            f"{moved / GIB:,.0f} GiB | {moved / NETWORK_BYTES_PER_S:.1f} s |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("run_dirs", nargs="*", help="finished runs that were made on this machine, by CPU")
    parser.add_argument("--pairs", type=float, default=2000, help="of a community (%(default)g)")
    parser.add_argument("--price", type=float, default=3.0, help="of an H100's hour (%(default)g)")
    arguments = parser.parse_args()
    for one in arguments.run_dirs:
        if not Path(one, "config.yaml").is_file():
            parser.error(f"{one}: no finished run: it has no config.yaml")
    for name in ("pairs", "price"):
        if not 0 <= getattr(arguments, name) < math.inf:
            parser.error(f"--{name}: {getattr(arguments, name)}: a number from 0 up")
    main(*arguments.run_dirs, pairs=arguments.pairs, price=arguments.price)
