"""The cost model against finished runs, and carried to sizes that nobody here has run.

python -m benchmarks.scale RUN_DIR [RUN_DIR ...]      # runs made on this machine, by CPU

Prints tables. The first compares what the model says with what the runs' manifests say that was computed,
and in which time; the others are arithmetic.
"""

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from scpo_ray import hardware
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
from scpo_ray.precision import resolved_precision
from scpo_ray.stages.estimate import read_data, reward_shape
from scpo_ray.stages.plan import estimate

GIB, TIB = 2**30, 2**40
MODELS = {
    "1B": TransformerShape(16, 2048, 8192, 32, 8, 64, 128256),
    "8B": TransformerShape(32, 4096, 14336, 32, 8, 128, 128256),
    "70B": TransformerShape(80, 8192, 28672, 64, 8, 128, 128256),
}
"""Llama 3's shapes."""
PRICE_PER_GPU_HOUR = 3.0
LORA_RANK = 16
PPO_STEPS, PPO_RESPONSES, PROMPT_TOKENS, RESPONSE_TOKENS = 200, 256, 200, 256
NETWORK_BYTES_PER_S = 50e9
"""400 Gbit/s between nodes."""


@dataclass(frozen=True)
class World:
    """Preference data of many communities, in PRISM's proportions."""

    num_communities: int
    pairs_per_community: int = 2000
    pairs_per_interaction: int = 6
    responses_per_interaction: int = 4
    tokens_per_response: int = 450
    train_share: float = 0.7

    @property
    def responses_per_community(self) -> float:
        """Over all splits."""
        return self.pairs_per_community / self.pairs_per_interaction * self.responses_per_interaction


def main(*run_dirs: str) -> None:
    """Every table, on stdout."""
    print("## Against finished runs\n")
    print("| run | stage | tokens, predicted / measured | seconds, predicted / measured | of the peak |")
    print("|---|---|---|---|---|")
    utilizations: dict[str, list[float]] = {"scoring": [], "training": []}
    for run_dir in run_dirs:
        for row, kind, utilization in checked(run_dir):
            print(f"{row} {utilization:.0%} |")
            utilizations[kind].append(utilization)
        print("".join(f"{row}\n" for row in checked_policies(run_dir)), end="")
    for kind, found in utilizations.items():
        if found:
            print(
                f"\n{kind}: {statistics.median(found):.0%} of the peak in the median ({min(found):.0%} to {max(found):.0%})"
            )
    print("\n## On paper\n")
    print("\n".join(memory_table()))
    print()
    print("\n".join(hours_table()))
    print()
    print("\n".join(policies_table()))


def checked(run_dir: str) -> Iterator[tuple[str, str, float]]:
    """Stages of a run: (row, scoring or training, share of the peak that it reached)."""
    config = Config.model_validate(_settings(run_dir))
    directory = RunDirectory(run_dir)
    data = read_data(config, directory, batching=config.train.batching)
    assert data is not None
    together = read_data(config, directory, batching=config.train_global.batching, pooled=data.majority)
    assert together is not None
    shape = reward_shape(config, directory)
    name = Path(run_dir).name
    found = directory.find("scores")
    if found is not None and int(str(found.statistics["num_cached"])) == 0:
        tokens = data.num_responses * data.mean_tokens
        flops = forward_flops(shape, num_tokens=tokens, mean_length=data.mean_tokens)
        peak = hardware.cpu(bfloat16=resolved_precision(config.score.precision, on_gpu=False) == "bfloat16")
        seconds = flops / peak.flops / peak.scoring_utilization
        yield (
            _row(name, "score", tokens, found.statistics["num_tokens"], seconds, found.wall_time_s),
            "scoring",
            flops / (peak.flops * found.wall_time_s),
        )
    for address in ["global_model", *(f"reward_models/{each}" for each in directory.names("reward_models"))]:
        manifest = directory.find(address)
        if manifest is None or "num_tokens" not in manifest.statistics:
            continue
        train = config.train_global if address == "global_model" else config.train
        measured = float(str(manifest.statistics["num_tokens"]))
        wall = float(str(manifest.statistics["wall_time_s"]))
        predicted = measured
        if address == "global_model":
            predicted = sum(together.training_responses.values()) * train.epochs * data.mean_tokens
        rank = train.lora.rank if train.lora.enabled else None
        flops = training_flops(shape, num_tokens=measured, mean_length=data.mean_tokens, lora_rank=rank)
        peak = hardware.cpu(bfloat16=resolved_precision(train.precision, on_gpu=False) == "bfloat16")
        seconds = flops / peak.flops / peak.training_utilization
        yield _row(name, address, predicted, measured, seconds, wall), "training", flops / (peak.flops * wall)


def checked_policies(run_dir: str) -> Iterator[str]:
    """PPO of a run, all policies together. What is predicted is at most: every response as long as it may be."""
    config, directory = Config.model_validate(_settings(run_dir)), RunDirectory(run_dir)
    names = directory.names("policies")
    planned = estimate(config, directory, "ppo", capacity()) if names else None
    if planned is None or planned.seconds is None:
        return
    steps = [step for name in names for step in directory.read_json(f"policies/{name}/metrics.json")["steps"]]
    tokens = sum(step["tokens_per_second"] * step["seconds"] for step in steps)
    seconds = sum(step["seconds"] for step in steps)
    yield _row(Path(run_dir).name, "PPO", planned.num_tokens, tokens, planned.seconds, seconds) + " |"


def _settings(run_dir: str) -> dict:
    return yaml.safe_load(Path(run_dir, "config.yaml").read_text()) | {"run_dir": run_dir}


def _row(run: str, stage: str, predicted: float, measured: object, seconds: float, wall: float) -> str:
    real = float(str(measured))
    return f"| {run} | {stage} | {predicted:,.0f} / {real:,.0f} ({predicted / real - 1:+.1%}) | {seconds:.1f} / {wall:.1f} |"


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
            shape, num_tokens=8 * 512, length=512, bytes_per_value=2, checkpointing=True, eager=False
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


def hours_table() -> Iterator[str]:
    """One pipeline, H100 hours."""
    device = hardware.GPUS["H100"]
    yield "| communities | model | score once | train, full | train, LoRA | evaluate | sum, LoRA | price | on disk, full / LoRA |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for number in (7, 50, 195):
        world = World(number)
        for name, shape in MODELS.items():
            length = world.tokens_per_response
            tokens = number * world.responses_per_community * length
            forward = forward_flops(shape, num_tokens=tokens, mean_length=length)
            trained = {"num_tokens": tokens * world.train_share, "mean_length": length, "checkpointing": True}
            scoring, training = (
                device.flops * share * 3600 for share in (device.scoring_utilization, device.training_utilization)
            )
            score, evaluate = forward / scoring, forward * (1 - world.train_share) * 2 / scoring
            full = training_flops(shape, **trained) / training
            lora = training_flops(shape, **trained, lora_rank=LORA_RANK) / training
            total = score + lora + evaluate
            disk = (4 * shape.num_parameters * number / TIB, 4 * shape.num_adapter_parameters(LORA_RANK) * number / TIB)
            yield (
                f"| {number} | {name} | {score:,.1f} h | {full:,.1f} h | {lora:,.1f} h | {evaluate:,.1f} h | {total:,.1f} | "
                f"${total * PRICE_PER_GPU_HOUR:,.0f} | {disk[0]:,.2f} / {disk[1]:.3f} TiB |"
            )


def policies_table() -> Iterator[str]:
    """PPO for one community through LoRA, H100 hours: an 8-GPU learner group beside as many engines as hold the model."""
    device = hardware.GPUS["H100"]
    yield "| policy | GPUs, engine | its KV cache | writing | scoring | learning | 195 policies | weights to an engine | time |"
    yield "|---|---|---|---|---|---|---|---|---|"
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
        moved = synchronization_bytes(shape.num_parameters, num_engines=1, bytes_per_value=2)
        hours = [seconds / 3600 for seconds in (writing, scoring, learning)]
        yield (
            f"| {name} | {gpus} | {cache / GIB:,.0f} GiB | "
            + " | ".join(f"{each:,.1f} h" for each in hours)
            + f" | {195 * sum(hours):,.0f} h | {moved / GIB:,.0f} GiB | {moved / NETWORK_BYTES_PER_S:.1f} s |"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
