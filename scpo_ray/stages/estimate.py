"""What stages of reward models will compute: tokens, FLOPs, memory per device, hours; from the data that is prepared and the
models' shapes. `policy_estimate` does so for policies."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray import hardware, model_files
from scpo_ray.artifacts import Manifest, RunDirectory
from scpo_ray.attention import LONGEST_BY_PRODUCTS
from scpo_ray.capacity import Capacity
from scpo_ray.config import Config, ModelConfig, OptimizationConfig
from scpo_ray.core.model_size import (
    TransformerShape,
    activation_bytes,
    backward_bytes,
    forward_flops,
    gradient_traffic_bytes,
    state_bytes,
    training_flops,
)
from scpo_ray.errors import ArtifactError
from scpo_ray.models import shape_of
from scpo_ray.packing import tokens_per_pass
from scpo_ray.precision import resolved_precision
from scpo_ray.stages.recipes import GLOBAL_MODEL, PREPARED, SCORES

CHARACTERS_PER_TOKEN = 4.0
"""Where nothing has been scored yet: about what tokenizers make of English."""


@dataclass(frozen=True)
class Estimate:
    """Of a stage from its start to its end. None is what cannot be known yet."""

    num_tokens: float
    flops: float
    memory_bytes: float | None
    """Per device, weights and what a step keeps; the framework's own needs come on top, on CPUs the allocator's holes too
    (docs/scale.md)."""
    seconds: float | None
    sent_bytes: float = 0.0
    """Between nodes: gradients, or weights on their way to rollout engines; of each device."""
    least_bytes: float = 0.0
    """Of the memory, what smaller batches do not avoid: weights, gradients, optimiser states."""
    host_bytes: float = 0.0
    """Main memory of a worker with a GPU: each reads the whole model in float32, and trainers keep a copy for the next."""

    def with_more(self, more: "Estimate") -> "Estimate":
        """Of two stages in one, the second in what memory the first has."""
        known = self.seconds is not None and more.seconds is not None
        return replace(
            self,
            num_tokens=self.num_tokens + more.num_tokens,
            flops=self.flops + more.flops,
            seconds=self.seconds + more.seconds if known else None,
        )


@dataclass(frozen=True)
class Data:
    """What is prepared, counted."""

    num_responses: int
    num_pairs: int
    training_items: dict[str, int]
    """Community -> interactions, prompts or pairs (as `batching` has it) among its training pairs."""
    training_responses: dict[str, int]
    """Community -> responses of these items, each once per item."""
    majority: tuple[str, ...]
    mean_tokens: float
    """Of a response with its context."""
    mean_context_tokens: float
    """Of the context alone: a guess from characters."""
    is_measured: bool
    """Whether tokens were counted by the scorer, or are guessed from characters."""


POOLED = "pooled"
"""Name of communities that are trained on together, in `Data`."""


def read_data(config: Config, directory: RunDirectory, *, batching: str, pooled: Sequence[str] = ()) -> Data | None:
    """None before `prepare`.

    Args:
        batching: what an item is: that of `train`, or of `train_global`.
        pooled: count these communities as one, whose members share items, and no others.
    """
    manifest = directory.find(PREPARED)
    if manifest is None:
        return None
    columns = ["community", "interaction_id", "prompt_id", "pair_id", "chosen_id", "rejected_id"]
    pairs = directory.read_table("prepared/pairs.parquet", columns=columns, filters=pc.field("split") == "train")
    if pooled:
        pairs = pairs.filter(pc.field("community").isin(list(pooled)))
        pairs = pairs.set_column(0, "community", pa.repeat(POOLED, len(pairs)))
    key = {"interactions": "interaction_id", "prompts": "prompt_id", "pairs": "pair_id"}[batching]
    items, responses = _per_community(pairs, key)
    tokens, context_tokens, is_measured = _mean_tokens(config, directory)
    statistics = manifest.statistics
    majority = statistics["majority"]
    assert isinstance(majority, list)
    counts = [_count(directory, manifest, name) for name in ("num_responses", "num_pairs")]
    return Data(counts[0], counts[1], items, responses, tuple(majority), tokens, context_tokens, is_measured)


def _count(directory: RunDirectory, manifest: Manifest, name: str) -> int:
    value = manifest.statistics.get(name)
    if not isinstance(value, int):
        raise ArtifactError(
            f"{directory.path(manifest.name)}/manifest.json: statistics.{name} is {value!r}, which no release writes; delete the "
            "folder and rerun"
        )
    return value


def _per_community(pairs: pa.Table, key: str) -> tuple[dict[str, int], dict[str, int]]:
    """Items, and responses in them."""
    rows = pa.concat_tables(
        [
            pairs.select(["community", key, column]).rename_columns(["community", "item", "response"])
            for column in _SIDES
        ]
    )
    distinct = rows.group_by(["community", "item", "response"]).aggregate([])
    responses = distinct.group_by("community").aggregate([([], "count_all")]).to_pylist()
    items = distinct.group_by("community").aggregate([("item", "count_distinct")]).to_pylist()
    return (
        {row["community"]: row["item_count_distinct"] for row in items},
        {row["community"]: row["count_all"] for row in responses},
    )


_SIDES = ("chosen_id", "rejected_id")


def _mean_tokens(config: Config, directory: RunDirectory) -> tuple[float, float, bool]:
    """Of a response with its context, of the context alone, and whether the first was counted."""
    with directory.open_parquet("prepared/responses.parquet") as file:  # the first rows speak for all
        rows = file.read_row_group(0, columns=["context", "response"]).to_pylist()
    contexts = [sum(len(message["content"]) for message in row["context"]) / CHARACTERS_PER_TOKEN for row in rows]
    responses = [len(row["response"]) / CHARACTERS_PER_TOKEN for row in rows]
    context = sum(contexts) / len(rows)
    if directory.find(SCORES) is not None:
        counted = directory.read_table("scores/scores.parquet", columns=["num_tokens"])["num_tokens"]
        return float(pc.mean(counted).as_py()), context, True
    capped = [min(sum(lengths), config.format.max_tokens) for lengths in zip(contexts, responses, strict=True)]
    return sum(capped) / len(rows), context, False


def _score(config: Config, directory: RunDirectory, data: Data, capacity: Capacity) -> Estimate:
    num_rulers = 2 if config.select.needs_other_ruler else 1
    return _scoring(config, directory, num_rulers * data.num_responses, data, capacity)


def _evaluate(config: Config, directory: RunDirectory, data: Data, capacity: Capacity) -> Estimate:
    """A model reads its community's validation and test pairs and the majority's test pairs, the main arm's all test pairs; each
    response once. Options that were asked about are not counted apart: most are in these pairs."""
    held_out = directory.read_table(
        "prepared/pairs.parquet",
        columns=["community", "split", "chosen_id", "rejected_id"],
        filters=pc.field("split").isin(["validation", "test"]),
    )
    tested = _distinct_responses(held_out.filter(pc.equal(held_out["split"], "test")))
    of_majority = set().union(*(tested.get(name, set()) for name in data.majority))
    all_tested, own = set().union(*tested.values()), _distinct_responses(held_out)
    num_others = _models_per_community(config) - 1
    number = 0
    for name in communities_of(config, data):
        mine = own.get(name, set())
        number += len(all_tested) + len(mine - all_tested) + num_others * (len(of_majority) + len(mine - of_majority))
    return _scoring(config, directory, number, data, capacity)


def _distinct_responses(pairs: pa.Table) -> dict[str, set[str]]:
    """Community -> responses of its pairs."""
    found: dict[str, set[str]] = {}
    for name in pc.unique(pairs["community"]).to_pylist():
        of_community = pairs.filter(pc.equal(pairs["community"], name))
        found[name] = set(of_community["chosen_id"].to_pylist()).union(of_community["rejected_id"].to_pylist())
    return found


def _scoring(config: Config, directory: RunDirectory, num_responses: float, data: Data, capacity: Capacity) -> Estimate:
    shape = reward_shape(config, directory)
    score = config.score
    tokens = num_responses * data.mean_tokens
    flops = forward_flops(shape, num_tokens=tokens, mean_length=data.mean_tokens)
    on_gpu = score.gpus_per_scorer > 0
    device = device_of(score.precision, on_gpu, capacity)
    seconds = device and flops / (device.flops * device.scoring_utilization) / (score.num_scorers if on_gpu else 1)
    weights = float(4 * shape.num_parameters)
    return Estimate(tokens, flops, weights, seconds, least_bytes=weights, host_bytes=weights)


def _train_global(config: Config, directory: RunDirectory, data: Data, capacity: Capacity) -> Estimate | None:
    train = config.train_global
    if train.epochs == 0:
        return None
    names = train.communities or data.majority
    together = read_data(config, directory, batching=train.batching, pooled=names)
    assert together is not None
    models = list(together.training_items) * (2 if config.select.needs_other_ruler else 1)
    return _training(config, directory, train, models, together, capacity)


def _train(config: Config, directory: RunDirectory, data: Data, capacity: Capacity) -> Estimate:
    """At most: what selection drops is not taken off."""
    many = _models_per_community(config)
    return _training(config, directory, config.train, communities_of(config, data) * many, data, capacity)


def _tune(config: Config, directory: RunDirectory, data: Data, capacity: Capacity) -> Estimate:
    """At most: every trial and baseline trains to its end, on all pairs, and reads its and the majority's validation pairs."""
    num_baselines = 2 if config.select.strategy == "filter_weight" else 1
    names = communities_of(config, data) * (config.tune.num_planned + num_baselines)
    pairs = directory.read_table(
        "prepared/pairs.parquet",
        columns=["community", "chosen_id", "rejected_id"],
        filters=pc.field("split") == "validation",
    )
    read = _distinct_responses(pairs)
    of_majority = sum(len(read.get(name, ())) for name in data.majority)
    judging = _scoring(config, directory, sum(len(read.get(name, ())) + of_majority for name in names), data, capacity)
    training = _training(config, directory, config.train, names, data, capacity)
    return training.with_more(judging)


def _models_per_community(config: Config) -> int:
    """Every arm's, and further seeds of those that are no point of a curve (`train.model_names`)."""
    arms = config.select.arms
    return len(arms) + (config.train.num_seeds - 1) * sum(arm.name in config.select.strategies for arm in arms)


def _training(
    config: Config, directory: RunDirectory, train: OptimizationConfig, names: list[str], data: Data, capacity: Capacity
) -> Estimate:
    shape = reward_shape(config, directory)
    passes = {name: _passes(train, data.training_items[name]) for name in names}
    tokens = sum(data.training_responses[name] * passes[name] for name in names) * data.mean_tokens
    steps = sum(data.training_items[name] * passes[name] for name in names) / train.batch_size
    rank = train.lora.rank if train.lora.enabled else None
    flops = training_flops(
        shape,
        num_tokens=tokens,
        mean_length=data.mean_tokens,
        lora_rank=rank,
        checkpointing=train.gradient_checkpointing,
    )
    trained = shape.num_parameters if rank is None else shape.num_adapter_parameters(rank)
    on_gpu = train.use_gpu
    responses_per_item = sum(data.training_responses.values()) / max(sum(data.training_items.values()), 1)
    states = state_bytes(
        shape.num_parameters, num_trained=trained, zero_stage=train.zero_stage, num_devices=train.fewest_workers
    )
    memory = states + _pass_bytes(config, train, shape, responses_per_item)
    device = device_of(train.precision, on_gpu, capacity)
    groups = config.train.num_worker_groups if train is config.train else 1
    devices = train.num_workers * groups if on_gpu else 1
    seconds = device and flops / (device.flops * device.training_utilization) / devices
    sent = steps * gradient_traffic_bytes(
        shape.num_parameters, num_trained=trained, zero_stage=train.zero_stage, num_devices=train.num_workers
    )
    return Estimate(tokens, flops, memory, seconds, sent, states, host_bytes=2 * 4.0 * shape.num_parameters)


def _pass_bytes(config: Config, train: OptimizationConfig, shape: TransformerShape, responses_per_item: float) -> float:
    """What a forward and backward pass over the longest micro-batch holds at its peak, on one device."""
    precision = resolved_precision(train.precision, on_gpu=train.use_gpu)
    width = 2 if precision == "bfloat16" else 4
    of_item = math.ceil(responses_per_item) * config.format.max_tokens
    tokens = math.ceil(train.batch_size / train.num_workers / train.accumulation_steps) * of_item
    if train.is_packed and train.num_workers == 1:
        tokens = min(tokens, max(of_item, tokens_per_pass(shape.intermediate_size)))
    kept = activation_bytes(
        shape,
        num_tokens=tokens,
        length=config.format.max_tokens,
        bytes_per_value=width,
        checkpointing=train.gradient_checkpointing,
        num_scores=_num_scores(train, precision, config.format.max_tokens),
    )
    return kept + backward_bytes(shape, num_tokens=tokens, bytes_per_value=width)


def _num_scores(train: OptimizationConfig, precision: str, length: int) -> float:
    """How often attention keeps its scores, of texts up to this length: where short ones keep them, all may be short."""
    if train.attention == "eager":
        return 2
    return min(1, LONGEST_BY_PRODUCTS.get(precision, 0) / length) if train.is_packed else 0


def _passes(train: OptimizationConfig, num_items: int) -> float:
    """Over a community's items: `epochs`, or what `max_steps` leaves of them."""
    if train.max_steps is None:
        return train.epochs
    of_steps = train.max_steps * train.batch_size / max(num_items, 1)
    return of_steps if train.max_steps_overrides_epochs else min(train.epochs, of_steps)


def communities_of(config: Config, data: Data) -> list[str]:
    """Those that reward models are trained for (`train.communities_to_train`), as far as they have training pairs."""
    if config.train.communities is not None:
        return [name for name in config.train.communities if name in data.training_items]
    left_out = (*data.majority, config.prepare.general_preferences.community)
    return [name for name in data.training_items if name not in left_out]


def device_of(precision: str, on_gpu: bool, capacity: Capacity) -> hardware.Device | None:
    """What a stage computes on; None for a GPU that is in no table."""
    bfloat16 = resolved_precision(precision, on_gpu=on_gpu) == "bfloat16"
    return hardware.gpu(capacity.accelerator, bfloat16=bfloat16) if on_gpu else hardware.cpu(bfloat16=bfloat16)


def reward_shape(config: Config, directory: RunDirectory) -> TransformerShape:
    """Of the run's reward models: the global model's, or of what it will be made from.

    Raises:
        ModelError: the configured model cannot be had.
    """
    train = config.train_global
    if train.model is not None:
        return shape_of(model_files.resolve(train.model))
    if directory.find(GLOBAL_MODEL) is not None and directory.is_local:
        return shape_of(Path(directory.fetch(GLOBAL_MODEL)))
    return scratch_shape(train.scratch, config.format.max_tokens)


def scratch_shape(scratch: ModelConfig, max_tokens: int) -> TransformerShape:
    """Of a model that is made from scratch."""
    is_bert = scratch.architecture == "bert"
    return TransformerShape(
        num_layers=scratch.num_layers,
        hidden_size=scratch.hidden_size,
        intermediate_size=4 * scratch.hidden_size,
        num_heads=scratch.num_heads,
        num_kv_heads=scratch.num_heads,
        head_size=scratch.hidden_size // scratch.num_heads,
        vocab_size=scratch.vocab_size,
        num_positions=max_tokens if is_bert else 0,
        gated_mlp=not is_bert,
        biases=is_bert,
    )


STAGES: dict[str, Callable[[Config, RunDirectory, Data, Capacity], Estimate | None]] = {
    "train_global": _train_global,
    "score": _score,
    "train": _train,
    "tune": _tune,
    "evaluate": _evaluate,
}
