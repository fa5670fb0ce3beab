"""One training from start to saved artifact, on every rank of a worker group."""

import copy
import gc
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
import torch.distributed as dist

from scpo_ray import model_files, models
from scpo_ray.artifacts import RunDirectory, storage_errors
from scpo_ray.core.schedules import learning_rate, num_optimizer_steps
from scpo_ray.errors import DataError, TrainingError
from scpo_ray.formatting import Formatter
from scpo_ray.training import engine as engines
from scpo_ray.training.batches import Item, PreferenceSet
from scpo_ray.training.data import load_preferences
from scpo_ray.training.model_card import model_card
from scpo_ray.training.step import collate_items, normalizers, part_loss, placeholder_loss
from scpo_ray.training.task import Observation, StartModel, TrainingSummary, TrainingTask, checkpoint_folder, ranks_of
from scpo_ray.training.watch import Watcher

Progress = Callable[[int, int, float], None]
Observe = Callable[[Observation | None], bool]
"""Told of a watched training's state on every rank, or that there is nothing new; False: stop it."""

_ASK_EVERY_STEPS = 10


class BaseModels:
    """Start models, read once per worker and copied for each training."""

    def __init__(self) -> None:
        self._loaded: tuple[tuple[StartModel, str], models.RewardModel] | None = None

    def get(self, start: StartModel, attention: str) -> models.RewardModel:
        """A fresh copy of the start model."""
        key = (start, attention)
        if self._loaded is None or self._loaded[0] != key:
            folder = model_files.resolve(start.address)
            self._loaded = (key, models.load(folder, attention=attention, new_head_seed=start.new_head_seed))
        loaded = self._loaded[1]
        return models.RewardModel(copy.deepcopy(loaded.model), loaded.tokenizer)


class Trainer:
    """The state of one training on one rank: data, engine, and what a checkpoint must restore."""

    def __init__(self, task: TrainingTask, base: models.RewardModel, *, device: torch.device) -> None:
        self.task, self.config = task, task.config
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.seed = _training_seed(task)
        torch.manual_seed(self.seed + self.rank)
        self.tokenizer = base.tokenizer
        self.formatter = Formatter(base.tokenizer, task.format_config)
        data = load_preferences(task, self.formatter, split="train")
        if data is None:
            raise DataError(f"{task.name}: no training pairs left after selection; raise select.agreement_threshold")
        self.data: PreferenceSet = data
        self.validation = load_preferences(task, self.formatter, split="validation")
        if self.validation is None and (self.config.patience is not None or self.config.keep == "best"):
            raise DataError(
                f"{task.name}: no validation pairs, which patience and keep: best need; raise "
                "prepare.validation_fraction or leave both unset"
            )
        self.num_steps = num_optimizer_steps(
            num_items=task.num_items or len(data),
            batch_size=self.config.batch_size,
            epochs=self.config.epochs,
            max_steps=self.config.max_steps,
            max_overrides=self.config.max_steps_overrides_epochs,
        )
        model = engines.with_adapters(base.model, self.config.lora)
        self.model = model
        models.prepare_for_training(
            model, dropout=self.config.dropout, gradient_checkpointing=self.config.gradient_checkpointing
        )
        models.keep_head_float32(model)
        self.engine = engines.make_engine(
            model,
            self.config,
            world_size=self.world_size,
            device=device,
            learning_rate=self.config.learning_rate,
            accumulation_steps=self.config.accumulation_steps,
        )
        self.step = 0
        self.losses: list[float] = []
        self.validation_losses: list[tuple[int, float]] = []
        self.num_tokens = self.num_padded_tokens = 0
        self.wall_time_s = 0.0

    def train_step(self, batch: Sequence[Item]) -> float:
        """One optimiser step on a global batch; returns its loss over all ranks, nats per pair.

        Raises:
            TrainingError: the loss is not finite (raised on every rank).
        """
        rate = learning_rate(
            step=self.step,
            num_steps=self.num_steps,
            peak=self.config.learning_rate,
            warmup_fraction=self.config.warmup_fraction,
            schedule=self.config.schedule,
        )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        normalizer, num_pairs = normalizers(batch, self.config)
        parts = self.data.split(batch, num_parts=self.world_size * self.config.accumulation_steps)
        totals = torch.zeros(3, dtype=torch.float64)  # loss, tokens, padded tokens
        for part in parts[self.rank :: self.world_size]:
            if part:
                micro_batch = collate_items(part, self.data, self.formatter, self.config)
                loss = part_loss(
                    self.engine, micro_batch.to(self.device), self.config, normalizer=normalizer, num_pairs=num_pairs
                )
                totals += torch.tensor([loss.item(), micro_batch.num_tokens, micro_batch.inputs["input_ids"].numel()])
            else:
                loss = placeholder_loss(self.engine, self.data, self.formatter, self.config)
            # DeepSpeed averages over ranks and accumulation steps; the parts are to be summed.
            self.engine.backward(loss * (self.world_size * self.config.accumulation_steps))
            self.engine.step()
        total = self._sum_over_ranks(totals)
        self.step += 1
        self.num_tokens += int(total[1])
        self.num_padded_tokens += int(total[2])
        self._check_finite(total[0], "loss")
        self.losses.append(total[0])
        return total[0]

    @torch.no_grad()
    def validate(self) -> float:
        """Mean unweighted loss on the communities' validation pairs, over all ranks, nats per pair."""
        assert self.validation is not None
        plain = self.config.model_copy(update={"centering_coefficient": 0.0, "margin_per_score": 0.0})
        self.engine.eval()
        parts_per_rank = max(1, math.ceil(len(self.validation) / (self.world_size * self.config.batch_size)))
        parts = self.validation.split(self.validation.items, num_parts=parts_per_rank * self.world_size)
        total = torch.zeros(1, dtype=torch.float64)
        for part in parts[self.rank :: self.world_size]:
            if part:
                micro_batch = collate_items(part, self.validation, self.formatter, plain).to(self.device)
                total += part_loss(
                    self.engine,
                    micro_batch,
                    plain,
                    normalizer=self.validation.num_pairs,
                    num_pairs=self.validation.num_pairs,
                ).item()
            else:
                placeholder_loss(self.engine, self.validation, self.formatter, plain)
        self.engine.train()
        (loss,) = self._sum_over_ranks(total)
        self._check_finite(loss, "validation loss")
        self.validation_losses.append((self.step, loss))
        return loss

    @property
    def best_step(self) -> int | None:
        """The step of the lowest validation loss, the first of equals; None before the first validation."""
        return (
            min(self.validation_losses, key=lambda entry: (entry[1], entry[0]))[0] if self.validation_losses else None
        )

    def is_out_of_patience(self) -> bool:
        """Whether the last `patience` validations brought no lower loss."""
        if self.config.patience is None or self.best_step is None:
            return False
        return sum(step > self.best_step for step, _ in self.validation_losses) >= self.config.patience

    def _sum_over_ranks(self, values: torch.Tensor) -> list[float]:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.tolist()

    def _check_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.task.name}: {what} is {value} at step {self.step} of {self.num_steps}; lower learning_rate "
                f"({self.config.learning_rate}) or use precision float32"
            )


def train(
    task: TrainingTask,
    bases: BaseModels,
    *,
    device: torch.device,
    progress: Progress,
    observe: Observe = lambda observation: True,
) -> TrainingSummary | None:
    """Train, from the last checkpoint if there is one, and write the artifact. The summary on rank 0, None elsewhere.

    A watched task tells `observe` how it does on validation pairs instead, and leaves no artifact.

    Raises:
        TrainingError: a loss is not finite, or `observe` wants no more (both on every rank).
    """
    try:
        return _train(task, bases, device, progress, observe)
    finally:
        gc.collect()  # an engine is part of cycles with its weights and optimiser: dozens would lie about before Python looks


def _train(
    task: TrainingTask, bases: BaseModels, device: torch.device, progress: Progress, observe: Observe
) -> TrainingSummary | None:
    trainer = Trainer(task, bases.get(task.start, task.config.attention), device=device)
    try:
        checkpoints = Checkpoints(task, trainer)
        checkpoints.resume()
        try:
            _train_steps(trainer, checkpoints, progress, observe)
        finally:
            if task.watch is not None and trainer.rank == 0:
                checkpoints.remove()  # a trial is never resumed, however it ended
        if task.watch is None:
            return _write_artifact(trainer, checkpoints, bases)
        keeps_best = task.config.keep == "best" and trainer.best_step is not None
        return _summarize(trainer, trainer.best_step if keeps_best else trainer.step) if trainer.rank == 0 else None
    finally:
        trainer.engine.destroy()


def _train_steps(trainer: Trainer, checkpoints: "Checkpoints", progress: Progress, observe: Observe) -> None:
    """From the step where the trainer stands to its last one."""
    task, config = trainer.task, trainer.config
    watcher = Watcher(task, trainer.formatter, trainer.device) if task.watch is not None else None
    validates = trainer.validation is not None and (
        watcher is None or config.patience is not None or config.keep == "best"
    )
    validate_every = max(1, round(len(trainer.data) / config.batch_size / config.evaluations_per_epoch))
    start = time.monotonic()
    for batch in trainer.data.batches(
        batch_size=config.batch_size,
        seed=trainer.seed,
        first_step=trainer.step,
        num_steps=trainer.num_steps,
        length_window=config.length_window,
    ):
        if trainer.is_out_of_patience():
            break
        loss = trainer.train_step(batch)
        progress(trainer.step, trainer.num_steps, loss)
        is_last = trainer.step == trainer.num_steps
        is_validated = validates and (is_last or trainer.step % validate_every == 0)
        if is_validated:
            trainer.validate()
        if watcher is None:
            if is_validated:
                checkpoints.keep_if_best()
        elif not _is_wanted(trainer, watcher, observe, is_validated=is_validated):
            raise TrainingError(f"{task.name}: stopped at step {trainer.step} of {trainer.num_steps}")
        if trainer.step % config.checkpoint_every_steps == 0 and not is_last:
            checkpoints.save(elapsed_s=time.monotonic() - start)
    trainer.wall_time_s += time.monotonic() - start


def _is_wanted(trainer: Trainer, watcher: Watcher, observe: Observe, *, is_validated: bool) -> bool:
    """Tell what is new of a watched training; the answer."""
    step, num_steps = trainer.step, trainer.num_steps
    if is_validated or watcher.part(step, num_steps) > watcher.part(step - 1, num_steps):
        return observe(watcher.observe(trainer.engine, step, num_steps))
    return step % _ASK_EVERY_STEPS > 0 or observe(None)


class Checkpoints:
    """Where an unfinished training is kept; the folder's name holds the recipe, so another config never finds it."""

    def __init__(self, task: TrainingTask, trainer: Trainer) -> None:
        self._task, self._trainer = task, trainer
        self._folder = checkpoint_folder(task)

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one.

        Raises:
            TrainingError: it was written by another number of workers.
        """
        found = ranks_of(self._folder)
        if found is None:
            return
        checkpoint, ranks = found
        if ranks != self._trainer.world_size:
            raise TrainingError(
                f"{checkpoint}: written by {ranks} workers, this run has {self._trainer.world_size}; use the same "
                "num_workers or delete the folder"
            )
        state = engines.load_checkpoint({"state": self._trainer.engine}, checkpoint)
        for name, value in state.items():
            setattr(self._trainer, name, value)

    def save(self, *, elapsed_s: float) -> None:
        """Write the checkpoint of this step, then drop older ones and weights that are no longer the best."""
        trainer = self._trainer
        state = {
            "step": trainer.step,
            "seed": trainer.seed,
            "losses": trainer.losses,
            "validation_losses": trainer.validation_losses,
            "num_tokens": trainer.num_tokens,
            "num_padded_tokens": trainer.num_padded_tokens,
            "wall_time_s": trainer.wall_time_s + elapsed_s,
        }
        name = f"step_{trainer.step:08d}"
        engines.save_checkpoint({"state": trainer.engine}, self._folder / name, state=state)
        if trainer.rank == 0:
            for path in self._folder.glob("step_*"):
                if path.name < name:
                    shutil.rmtree(path)
            for path in self._folder.glob("best_*.pt"):
                if path.name != f"best_{trainer.best_step}.pt":
                    path.unlink()

    def keep_if_best(self) -> None:
        """Put the weights aside when this validation was the best and the config keeps the best."""
        if self._trainer.config.keep != "best" or self._trainer.best_step != self._trainer.step:
            return
        state = engines.gather_state(self._trainer.engine)
        path = self._folder / f"best_{self._trainer.step}.pt"
        with engines.raised_on_every_rank(), storage_errors(str(path)):
            if state is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
                torch.save(state, path.with_suffix(".tmp"))
                os.replace(path.with_suffix(".tmp"), path)

    def best(self) -> tuple[int, dict[str, torch.Tensor]] | None:
        """(step, weights) of the best validation, on rank 0, when the config keeps them."""
        step = self._trainer.best_step
        if self._trainer.config.keep != "best" or step is None:
            return None
        return step, torch.load(self._folder / f"best_{step}.pt", weights_only=True)

    def remove(self) -> None:
        """Nothing of an unfinished training is needed once its artifact is there."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _write_artifact(trainer: Trainer, checkpoints: Checkpoints, bases: BaseModels) -> TrainingSummary | None:
    """Rank 0 writes model, card and metrics; every rank waits until it has, or raises what it raised."""
    state = engines.gather_state(trainer.engine)
    summary = None
    with engines.raised_on_every_rank():
        if state is not None:
            best = checkpoints.best()
            kept_step, kept_state = best if best is not None else (trainer.step, state)
            summary = _summarize(trainer, kept_step)
            _save(trainer, kept_state, summary, bases)
            checkpoints.remove()
    return summary


def _summarize(trainer: Trainer, kept_step: int) -> TrainingSummary:
    return TrainingSummary(
        task=trainer.task.name,
        num_steps=trainer.step,
        num_pairs=trainer.data.num_pairs,
        num_tokens=trainer.num_tokens,
        num_padded_tokens=trainer.num_padded_tokens,
        wall_time_s=round(trainer.wall_time_s, 3),
        losses=trainer.losses,
        validation_losses=trainer.validation_losses,
        kept_step=kept_step,
    )


def _save(trainer: Trainer, state: dict[str, torch.Tensor], summary: TrainingSummary, bases: BaseModels) -> None:
    """The weights `state`; with LoRA folded into a fresh base, and by themselves in `adapter`, as services share a base."""
    task = trainer.task
    with task.recipe.making(RunDirectory(task.run_address)) as draft:
        if task.config.lora.enabled:
            base = bases.get(task.start, task.config.attention).model
            adapted = engines.with_adapters(base, task.config.lora)
            model = engines.merge_adapters(adapted, state, keep=draft.folder / models.ADAPTER)
            models.save(model, trainer.tokenizer, draft.folder)
        else:
            model = trainer.model
            models.save(model, trainer.tokenizer, draft.folder, state=state)
        draft.write_json("metrics.json", asdict(summary))
        description = models.describe(model)
        (draft.folder / "README.md").write_text(model_card(task.card, description, summary))
        draft.content_hash = model_files.content_hash(draft.folder)
        brief = {key: value for key, value in asdict(summary).items() if key not in ("losses", "validation_losses")}
        draft.statistics |= brief | description


def _training_seed(task: TrainingTask) -> int:
    """The config's seed, or one from the operating system, shared by all ranks, when `seeded` is off."""
    if task.config.seeded:
        return task.seed
    seed = [int.from_bytes(os.urandom(4)) if dist.get_rank() == 0 else 0]
    dist.broadcast_object_list(seed, src=0)
    return seed[0]
