"""The start policy: supervised learning of the responses that people chose."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import ray

from scpo_ray import model_files, policies
from scpo_ray.artifacts import Manifest, Recipe, RunDirectory
from scpo_ray.config import Config
from scpo_ray.core.schedules import learning_rate, num_optimizer_steps
from scpo_ray.errors import DataError
from scpo_ray.formatting import Formatter
from scpo_ray.models import load_tokenizer
from scpo_ray.ppo.actors import Failures
from scpo_ray.ppo.checkpoints import FOLDERS, PolicyCheckpoints, checkpoints_in
from scpo_ray.ppo.learner import LearnerTask
from scpo_ray.ppo.learners import LearnerDied, Learners
from scpo_ray.ppo.placement import reserved
from scpo_ray.ppo.prompts import conversation_groups, is_test_group
from scpo_ray.ppo.records import Sequences
from scpo_ray.runtime import Bar, connect, progress_bar
from scpo_ray.stages import recipes
from scpo_ray.stages.prepare import check_known
from scpo_ray.stages.turns import turn
from scpo_ray.training.model_card import licence_of
from scpo_ray.training.policy_card import policy_card
from scpo_ray.training.task import check_checkpoint_dir

_INITIAL = f"{FOLDERS['sft']}/initial_policy"


@dataclass(frozen=True)
class Lesson:
    """What is taught: exchanges, and how many could not be."""

    sequences: Sequences
    communities: list[str]
    num_too_long: int


@dataclass(frozen=True)
class Taught:
    """How it went."""

    losses: list[float]
    """Per step, nats per response token."""
    seconds: float
    """With those of earlier attempts, up to their checkpoints."""


def run(config: Config) -> Manifest:
    """Write `start_policy`; what is already made is found on disk. An interrupted run goes on from its last checkpoint; another
    job in this stage is waited for.

    Raises:
        ConfigError: a configured community does not occur, or the cluster is too small.
        DataError: there is nothing to learn from.
        ModelError: the policy to start from cannot be used.
    """
    directory = RunDirectory(config.run_dir)
    check_checkpoint_dir(config.run_dir, config.sft.checkpoint_dir, "sft")
    with turn(directory, "sft", config.sft.checkpoint_dir):
        return _make(config, directory)


def _make(config: Config, directory: RunDirectory) -> Manifest:
    recipe = recipes.start_policy(config, directory)
    made = recipe.is_made(directory, rebuild=config.rebuild)
    if made is not None:
        return made
    address = _start(config, directory)
    start = model_files.resolve(address)
    lesson = read_lesson(config, directory, start)
    checkpoints = checkpoints_in(directory, recipe, config.sft)
    checkpoints.refuse_other_layout(config.sft, "sft")
    connect(config.log_format)
    threads = config.sft.threads_per_learner or max(1, (os.cpu_count() or 1) // config.sft.num_learners)
    with (
        reserved(config.sft, ("learner",)) as placement,
        progress_bar("sft", unit="steps", run=directory.absolute_address) as bar,
    ):
        learners = Learners(config.sft, lambda rank: placement.options("learner", rank), threads=threads)
        try:
            taught = _teach(config, learners, lesson, address, checkpoints, bar)
            _write(config, directory, recipe, learners, lesson, taught)
        finally:
            learners.stop()
    checkpoints.remove()
    directory.remove(_INITIAL)
    return directory.require(recipe.name, job="sft")


def read_lesson(config: Config, directory: RunDirectory, start: Path) -> Lesson:
    """What the communities chose in their training pairs, each response once, where policies may be trained."""
    manifest = recipes.checked(directory, recipes.prepared(config))
    majority = manifest.statistics["majority"]
    assert isinstance(majority, list)
    communities = list(config.sft.communities or majority)
    pairs = directory.read_table("prepared/pairs.parquet", columns=["community", "chosen_id", "rejected_id", "split"])
    check_known("sft.communities", communities, pairs["community"].to_pylist())
    pairs = pairs.filter((pc.field("split") == "train") & pc.field("community").isin(communities))
    salt, fraction = config.prepare.split_salt, config.ppo.test_prompt_fraction
    groups = conversation_groups(directory)
    chosen = {
        identifier
        for identifier in pairs["chosen_id"].to_pylist()
        if not is_test_group(groups[identifier], salt=salt, fraction=fraction)
    }
    if config.sft.responses == "best":
        chosen -= set(pairs["rejected_id"].to_pylist())
    rows = directory.read_table(
        "prepared/responses.parquet",
        columns=["response_id", "context", "response"],
        filters=pc.field("response_id").isin(sorted(chosen)),
    ).sort_by("response_id")
    formatter = Formatter(load_tokenizer(start), config.format)
    exchanges = formatter.exchanges(
        rows["context"].to_pylist(),
        rows["response"].to_pylist(),
        stop_token_ids=policies.stop_token_ids(start, load_tokenizer(start)),
    )
    fitting = [pair for pair in exchanges if len(pair[0]) + len(pair[1]) <= config.format.max_tokens]
    if not fitting:
        raise DataError(
            f"sft: no chosen response of {', '.join(communities)} to learn from ({len(exchanges)} are longer than "
            f"format.max_tokens {config.format.max_tokens}); raise it, or name other communities"
        )
    sequences = Sequences([prompt for prompt, _ in fitting], [response for _, response in fitting])
    return Lesson(sequences, communities, len(exchanges) - len(fitting))


def batches(number: int, *, batch_size: int, num_steps: int, seed: int, first_step: int = 0) -> Iterator[list[int]]:
    """Rows of each step from `first_step` on; every epoch is a new permutation, cut into whole batches."""
    per_epoch = max(1, -(-number // batch_size))
    for step in range(first_step, num_steps):
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([seed, 7, epoch]).permutation(number)
        yield order[place * batch_size : (place + 1) * batch_size].tolist()


def _start(config: Config, directory: RunDirectory) -> str:
    """Address of the pretrained policy, or a fresh one saved for the learners."""
    if config.sft.policy is not None:
        policies.check(model_files.resolve(config.sft.policy), num_tokens=config.format.max_tokens)
        return model_files.for_workers(config.sft.policy)
    responses = directory.read_table("prepared/responses.parquet", columns=["context", "response"]).to_pylist()
    texts = (text for row in responses for text in (*(m["content"] for m in row["context"]), row["response"]))
    made = policies.make(config.sft.scratch, texts=texts, max_tokens=config.format.max_tokens, seed=config.seed)
    with Recipe(_INITIAL, "sft", {}, {}, config.seed).making(directory) as draft:
        policies.save(made, draft.folder)
    return directory.shared_address(_INITIAL)


def _teach(
    config: Config, learners: Learners, lesson: Lesson, start: str, checkpoints: PolicyCheckpoints, bar: Bar
) -> Taught:
    """All steps, from the last checkpoint."""
    failures = Failures(config.sft.max_failures)
    while True:
        try:
            learners.start()
            learners.begin(
                LearnerTask(
                    name="start policy",
                    start=start,
                    config=config.sft,
                    seed=config.seed,
                    run=RunDirectory(config.run_dir).absolute_address,
                    stage="sft",
                    community=", ".join(lesson.communities),
                )
            )
            return _teach_from_checkpoint(config, learners, lesson, checkpoints, bar, failures)
        except LearnerDied:
            failures.note("learner")


def _teach_from_checkpoint(
    config: Config,
    learners: Learners,
    lesson: Lesson,
    checkpoints: PolicyCheckpoints,
    bar: Bar,
    failures: Failures,
) -> Taught:
    sft, number = config.sft, len(lesson.sequences.responses)
    num_steps = num_optimizer_steps(
        num_items=number, batch_size=sft.batch_size, epochs=sft.epochs, max_steps=sft.max_steps, max_overrides=False
    )
    newest = checkpoints.newest()
    state = learners.restore(str(newest)) if newest is not None else {}
    losses: list[float] = list(state.get("losses", ()))
    start = time.monotonic() - state.get("seconds", 0.0)
    sequences = ray.put(lesson.sequences)
    for rows in batches(
        number, batch_size=sft.batch_size, num_steps=num_steps, seed=config.seed, first_step=len(losses)
    ):
        rate = learning_rate(
            step=len(losses),
            num_steps=num_steps,
            peak=sft.learning_rate,
            warmup_fraction=sft.warmup_fraction,
            schedule=sft.schedule,
        )
        losses.append(learners.imitate(sequences, rows, learning_rate=rate))
        bar.update(len(losses), num_steps, note=f"loss {losses[-1]:.3f}", measures={"loss": losses[-1]})
        due = {"every": sft.checkpoint_every_steps, "failures": failures}
        if len(losses) < num_steps and checkpoints.is_due(len(losses), **due):
            checkpoints.save(learners, len(losses), {"losses": losses, "seconds": time.monotonic() - start})
    return Taught(losses, time.monotonic() - start)


def _write(
    config: Config,
    directory: RunDirectory,
    recipe: Recipe,
    learners: Learners,
    lesson: Lesson,
    taught: Taught,
) -> None:
    losses = taught.losses
    facts = {
        "start": config.sft.policy or "from scratch",
        "data": list(config.prepare.datasets),
        "licence of the data": licence_of(config.prepare.datasets),
        "communities whose chosen responses it learned": lesson.communities,
        **learners.describe(),
        "responses": len(lesson.sequences.responses),
        "responses too long": lesson.num_too_long,
        "optimiser steps": len(losses),
        "loss, first and last step": f"{losses[0]:.4f}, {losses[-1]:.4f}" if losses else "no step",
    }
    files = {
        "README.md": policy_card("start policy", facts),
        "metrics.json": {"losses": losses},
    }
    statistics = {
        "num_responses": len(lesson.sequences.responses),
        "num_too_long": lesson.num_too_long,
        "num_steps": len(losses),
        "wall_time_s": round(taught.seconds, 3),
        "num_tokens": int(
            sum(lesson.sequences.lengths) * len(losses) * config.sft.batch_size / len(lesson.sequences.responses)
        ),
    }
    learners.write(recipe, directory.absolute_address, files, statistics)
