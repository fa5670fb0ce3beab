"""A job's plan: what starts where, and what it will take; and whether the models that it names can be used."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from scpo_ray import model_files, models
from scpo_ray.artifacts import RunDirectory
from scpo_ray.capacity import Capacity
from scpo_ray.config import Config
from scpo_ray.errors import DataError, ModelError
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
    config: Config, directory: RunDirectory, stages: Sequence[str], made: set[str], has: Capacity
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
    stages = STAGES | {"sft": policy_estimate.start_policy, "ppo": policy_estimate.ppo}
    data = read_data(config, directory, batching=config.train.batching) if stage in stages else None
    if data is None:
        return None
    try:
        return stages[stage](config, directory, data, has)
    except ModelError:  # no model yet, which the stage itself will refuse
        return None


def check_model(config: Config, stage: str) -> None:
    """Refuse a configured model that is none, or whose tokenizer and chat template do not format a text.

    Raises:
        ModelError: with the setting that names it.
        DataError: its chat template refuses a question.
    """
    settings = {
        "train_global": ("train_global.model", config.train_global.model),
        "sft": ("sft.policy", config.sft.policy),
        "ppo": ("ppo.policy", config.ppo.policy),
    }
    key, address = settings.get(stage, ("", None))
    if address is None:
        return
    with _named(key):
        folder = model_files.resolve(address)
        if stage == "train_global":
            may_lack_head = config.train_global.epochs > 0
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
    for name in ("stage", "starts", "reserves, each", "tokens", "PFLOP", "memory, each", "sends, each", "about"):
        shown.add_column(name, justify="left" if name in ("stage", "starts", "reserves, each") else "right")
    for plan in plans:
        shown.add_row(plan.stage, *_starts(plan), *_costs(plan))
    return shown


def _starts(plan: StagePlan) -> tuple[str, str]:
    if plan.is_made:
        return "nothing: it is made", ""
    if plan.needs is None:
        return "nothing: in the job's process", ""
    kinds = list(dict.fromkeys(_resources(bundle) for bundle in plan.needs.bundles))
    return plan.needs.what, " | ".join(kinds)


def _resources(bundle: dict) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle.items() if amount) or "nothing"


def _costs(plan: StagePlan) -> tuple[str, ...]:
    found = plan.estimate
    if plan.is_made or plan.needs is None:
        return ("",) * 5
    if found is None:
        return (NONE,) * 5
    memory = NONE if found.memory_bytes is None else f"{found.memory_bytes / 2**30:.2f} GiB"
    sent = f"{found.sent_bytes / 2**30:.2f} GiB" if found.sent_bytes else NONE
    return count(found.num_tokens), f"{found.flops / 1e15:.3g}", memory, sent, duration(found.seconds)
