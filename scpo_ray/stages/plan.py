"""A job's plan: what starts where, and what it will take; and whether the models that it names can be used."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from scpo_ray import hardware, model_files, models
from scpo_ray.artifacts import RunDirectory
from scpo_ray.capacity import Capacity
from scpo_ray.config import Config
from scpo_ray.core.placement import can_hold, most_on, room
from scpo_ray.errors import ConfigError, DataError, ModelError
from scpo_ray.formatting import Formatter
from scpo_ray.reporting.numbers import NONE, count, duration
from scpo_ray.stages import policy_estimate
from scpo_ray.stages.estimate import STAGES, Estimate, read_data
from scpo_ray.stages.needs import Needs, needs_of


@dataclass(frozen=True)
class StagePlan:
    """A line of the plan."""

    stage: str
    is_made: bool
    needs: Needs | None
    estimate: Estimate | None


def make(
    config: Config, directory: RunDirectory, stages: Sequence[str], made: Collection[str], has: Capacity
) -> list[StagePlan]:
    """A line for every stage.

    Args:
        made: those of which nothing is left to do.
    """
    return [
        StagePlan(stage, stage in made, needs_of(config, stage), estimate(config, directory, stage, has))
        for stage in stages
    ]


def estimate(config: Config, directory: RunDirectory, stage: str, has: Capacity) -> Estimate | None:
    """Of a stage that runs a model; None where its data or model is not known yet."""
    stages = STAGES | {
        "sft": policy_estimate.start_policy,
        "ppo": policy_estimate.ppo,
        "best_of_n": policy_estimate.best_of_n,
    }
    data = read_data(config, directory, batching=config.train.batching) if stage in stages else None
    if data is None:
        return None
    try:
        return stages[stage](config, directory, data, has)
    except ModelError:  # no model yet, which the stage itself will refuse
        return None


def check_memory(line: StagePlan, has: Capacity) -> None:
    """Refuse a model that no device of the cluster can hold, whatever the batches.

    Raises:
        ConfigError: with what it takes, what there is, and the settings to change.
    """
    if line.is_made or line.needs is None or line.estimate is None:
        return
    _check_main_memory(line.stage, line.needs, line.estimate, has)
    room = _room(line.needs, has)
    if room is None or line.estimate.least_bytes <= room[0]:
        return
    takes, there = (f"{amount / 2**30:.1f} GiB" for amount in (line.estimate.least_bytes, room[0]))
    is_training = line.stage in ("train_global", "train", "tune", "sft", "ppo")
    section = "train" if line.stage == "tune" else line.stage
    ranks = "num_workers" if section in ("train_global", "train") else "num_learners"
    what = "weights, gradients and optimiser states" if is_training else "the model's weights"
    spread = f", {section}.zero_stage 3 over more {section}.{ranks}, or {section}.lora" if is_training else ""
    raise ConfigError(
        f"{line.stage}: {what} take {takes} for each worker, and {room[1]} has {there}; take larger devices, a smaller "
        f"model{spread}"
    )


def _check_main_memory(stage: str, needs: Needs, found: Estimate, has: Capacity) -> None:
    """Of workers with a GPU, which read the model into main memory first; no matter how it is partitioned later.

    Raises:
        ConfigError: no node that could hold a worker has memory for as many as would be packed there.
    """
    bundle, number = needs.bundles[0], len(needs.bundles)
    if not found.host_bytes or not bundle.get("GPU") or any(other != bundle for other in needs.bundles):
        return
    hosts = [node for node in has.nodes if can_hold(bundle, node)]
    if not hosts or not all(node.get("memory") for node in hosts):
        return
    takes = {index: most_on(bundle, node, number) * found.host_bytes for index, node in enumerate(hosts)}
    if any(takes[index] <= node["memory"] for index, node in enumerate(hosts)):
        return
    best = min(takes, key=lambda index: takes[index] - hosts[index]["memory"])
    count, each = most_on(bundle, hosts[best], number), found.host_bytes / 2**30
    raise ConfigError(
        f"{stage}: every worker reads the model into main memory, {count} x {each:.1f} GiB on a node, and that has "
        f"{hosts[best]['memory'] / 2**30:.1f} GiB for it; take nodes with more memory, fewer workers on each, or a smaller model"
    )


def _room(needs: Needs, has: Capacity) -> tuple[float, str] | None:
    """Bytes that one device has, and what it is called; of CPUs the largest that a node has on which it may be placed. None where
    it is not known."""
    if any(bundle.get("GPU", 0.0) for bundle in needs.bundles):
        device = hardware.gpu(has.accelerator, bfloat16=True)
        return None if device is None or device.memory_bytes is None else (device.memory_bytes, f"an {device.name}")
    hosts = [node for node in has.nodes if any(can_hold(bundle, node) for bundle in needs.bundles)]
    if not hosts or not all(
        node.get("memory") for node in hosts
    ):  # nodes that do not run yet may say nothing of theirs
        return None
    return max(node["memory"] for node in hosts), "the largest node"


def check_model(config: Config, stage: str) -> None:
    """Refuse a configured model that is none, or whose tokenizer and chat template do not format a text. Stages hand each other
    texts, never tokens, so that two models' tokenizers need not be the same.

    Raises:
        ModelError: with the setting that names it.
        DataError: its chat template refuses a question.
    """
    settings: dict[str, tuple[str, tuple[str | None, ...]]] = {
        "train_global": ("train_global.model", (config.train_global.model,)),
        "evaluate": ("evaluate.models", config.evaluate.models),
        "sft": ("sft.policy", (config.sft.policy,)),
        "ppo": ("ppo.policy", (config.ppo.policy,)),
    }
    key, addresses = settings.get(stage, ("", ()))
    for address in addresses:
        if address is None:
            continue
        with _named(key):
            folder = model_files.resolve(address)
            if stage in ("train_global", "evaluate"):
                may_lack_head = stage == "train_global" and config.train_global.epochs > 0
                models.check(folder, may_lack_head=may_lack_head, max_tokens=config.format.max_tokens)
            formatter = Formatter(models.load_tokenizer(folder), config.format)
            formatter.format([[{"role": "user", "content": "Is this read?"}]], ["It is."])


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except (ModelError, DataError) as error:
        raise type(error)(f"{key}: {error}") from error


def table(plans: list[StagePlan], has: Capacity) -> Table:
    """What starts where, and what it will take."""
    totals = ", ".join(f"{amount:g} {name}" for name, amount in has.totals.items() if amount)
    shown = Table(title=f"Plan: {len(has.nodes)} node{'s' if len(has.nodes) > 1 else ''}, {totals} ({has.where})")
    shown.title_justify = "left"
    words = ("stage", "starts", "reserves, each", "on")
    names = (*words, "tokens", "PFLOP", "memory, each", "sends, each", "about")
    rows = [(plan.stage, *_starts(plan, has), *_costs(plan, has)) for plan in plans]
    columns = {name: cells for name, *cells in zip(names, *rows, strict=True)}
    if not set(columns["sends, each"]) - {"", NONE}:
        del columns["sends, each"]  # one device sends nothing, and tables are wide
    for name in columns:
        shown.add_column(name, justify="left" if name in words else "right")
    for cells in zip(*columns.values(), strict=True):
        shown.add_row(*cells)
    return shown


def _starts(plan: StagePlan, has: Capacity) -> tuple[str, str, str]:
    if plan.is_made:
        return "nothing: it is made", "", ""
    if plan.needs is None:
        return "in the job's process", "", ""
    kinds = {_resources(bundle): _places(bundle, has) for bundle in plan.needs.bundles}
    return plan.needs.what, "\n".join(kinds), "\n".join(kinds.values())


def _places(bundle: Mapping[str, float], has: Capacity) -> str:
    """Where a bundle can go, and how many of it could."""
    if not any(bundle.values()):
        return "any node"
    hosts, number = room(bundle, has.nodes)
    nodes = f"{hosts} of {len(has.nodes)} nodes, " if len(has.nodes) > 1 else ""
    return f"{nodes}room for {number}"


def _resources(bundle: dict) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle.items() if amount) or "nothing"


def _costs(plan: StagePlan, has: Capacity) -> tuple[str, ...]:
    found = plan.estimate
    if plan.is_made or plan.needs is None:
        return ("",) * 5
    if found is None:
        return (NONE,) * 5
    memory, room = NONE, _room(plan.needs, has)
    if found.memory_bytes is not None:
        memory = f"{found.memory_bytes / 2**30:.2f} GiB"
        memory += f" of {room[0] / 2**30:.0f}!" if room and found.memory_bytes > room[0] else ""
    sent = f"{found.sent_bytes / 2**30:.2f} GiB" if found.sent_bytes else NONE
    return count(found.num_tokens), f"{found.flops / 1e15:.3g}", memory, sent, duration(found.seconds)
