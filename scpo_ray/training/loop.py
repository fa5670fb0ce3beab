"""One training from start to saved artifact, on every rank of a worker group."""

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from scpo_ray import model_files, models, telemetry
from scpo_ray.artifacts import RunDirectory
from scpo_ray.errors import TrainingError
from scpo_ray.training import engine as engines
from scpo_ray.training.checkpoints import Checkpoints
from scpo_ray.training.model_card import model_card
from scpo_ray.training.stacks import Stacks, stacks_folder
from scpo_ray.training.task import (
    Observation,
    StartModel,
    StepReport,
    TrainingSummary,
    TrainingTask,
)
from scpo_ray.training.trainer import Trainer
from scpo_ray.training.watch import Watcher

_ASK_EVERY_S = 2.0
_CHECKPOINT_UNDER_NOTICE_S = 10.0
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


@dataclass(frozen=True)
class Contact:
    """How a training speaks with those who started it."""

    progress: Callable[[StepReport], None] = lambda report: None
    observe: Callable[[Observation | None], bool] = lambda observation: True
    """Told of a watched training's state on every rank, or that there is nothing new; False: stop it."""

    is_preempted: Callable[[], bool] | None = None
    """Whether a node of the group is about to be taken away; asked on every rank at the same time."""


def train(
    task: TrainingTask, bases: BaseModels, *, device: torch.device, contact: Contact = Contact()
) -> TrainingSummary | None:
    """Train, from the last checkpoint if there is one, and write the artifact. The summary on rank 0, None elsewhere.

    A watched task tells how it does on validation pairs instead, and leaves no artifact.

    Raises:
        TrainingError: a loss is not finite, or it is not wanted any more (both on every rank).
    """
    stacks = Stacks(stacks_folder(task), dist.get_rank(), limit_s=task.config.collective_timeout_s)
    try:
        with stacks.watching():
            return _train(task, bases, device, stacks, contact)
    finally:
        gc.collect()  # an engine is part of cycles with its weights and optimiser: dozens would lie about before Python looks


def _train(
    task: TrainingTask, bases: BaseModels, device: torch.device, stacks: Stacks, contact: Contact
) -> TrainingSummary | None:
    trainer = Trainer(task, bases.get(task.start, task.config.attention), device=device)
    try:
        checkpoints = Checkpoints(task, trainer)
        checkpoints.resume()
        _log(trainer, "training")
        try:
            _train_steps(trainer, checkpoints, stacks, contact)
        finally:
            if task.watch is not None and trainer.rank == 0:
                checkpoints.discard()  # a trial is never resumed, however it ended
        if task.watch is None:
            with stacks.of_step():
                return _write_artifact(trainer, checkpoints, bases)
        keeps_best = task.config.keep == "best" and trainer.best_step is not None
        return _summarize(trainer, trainer.best_step if keeps_best else trainer.step) if trainer.rank == 0 else None
    finally:
        trainer.engine.destroy()


def _train_steps(trainer: Trainer, checkpoints: Checkpoints, stacks: Stacks, contact: Contact) -> None:
    """From the step where the trainer stands to its last one."""
    task, config = trainer.task, trainer.config
    watcher = Watcher(task, trainer.formatter, trainer.device, trainer.packer) if task.watch is not None else None
    validates = trainer.validation is not None and (
        watcher is None or config.patience is not None or config.keep == "best"
    )
    validate_every = max(1, round(len(trainer.data) / config.batch_size / config.evaluations_per_epoch))
    notice = PreemptionNotice(trainer, contact.is_preempted)
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
        with stacks.of_step():
            trainer.train_step(batch, calls=notice.is_due())
            contact.progress(trainer.report())
            is_last = trainer.step == trainer.num_steps
            is_validated = validates and (is_last or trainer.step % validate_every == 0)
            if is_validated:
                trainer.validate()
            if watcher is None:
                if is_validated:
                    checkpoints.keep_if_best()
            elif not _is_wanted(trainer, watcher, contact.observe, is_validated=is_validated):
                raise TrainingError(f"{task.name}: stopped at step {trainer.step} of {trainer.num_steps}")
            if notice.asks_for_checkpoint() or (trainer.step % config.checkpoint_every_steps == 0 and not is_last):
                checkpoints.save(elapsed_s=time.monotonic() - start)
                notice.wait()
                _log(trainer, "checkpoint saved")
    trainer.wall_time_s += time.monotonic() - start


class PreemptionNotice:
    """Asks now and then whether a node of the group is to be taken away; from then on checkpoints come often.

    Args:
        is_preempted: as in `Contact`. All ranks ask after the same step, the first that a rank calls them together in.
    """

    def __init__(self, trainer: Trainer, is_preempted: Callable[[], bool] | None) -> None:
        self._trainer, self._is_preempted = trainer, is_preempted
        self.wait()
        self._is_noticed = False

    def is_due(self) -> bool:
        """Whether this rank calls the others together."""
        wait_s = _CHECKPOINT_UNDER_NOTICE_S if self._is_noticed else _ASK_EVERY_S
        return self._is_preempted is not None and self._trainer.rank == 0 and time.monotonic() - self._asked >= wait_s

    def asks_for_checkpoint(self) -> bool:
        """After a step: whether to save one now, beside those that are due."""
        if self._is_preempted is None or not self._trainer.is_called:
            return False
        self.wait()
        if not self._is_noticed and self._is_preempted():
            self._is_noticed = True
            _log(self._trainer, "preemption notice")
        return self._is_noticed

    def wait(self) -> None:
        """Begin to wait for the next call."""
        self._asked = time.monotonic()


def _log(trainer: Trainer, message: str) -> None:
    """Of every rank: where it stands."""
    task = trainer.task
    told = telemetry.Stage(task.run_address, task.recipe.stage)
    where = {"step": trainer.step, "num_steps": trainer.num_steps, "rank": trainer.rank}
    told.log(message, name=task.name, community=", ".join(task.communities), **where)


def _is_wanted(
    trainer: Trainer, watcher: Watcher, observe: Callable[[Observation | None], bool], *, is_validated: bool
) -> bool:
    """Tell what is new of a watched training; the answer."""
    step, num_steps = trainer.step, trainer.num_steps
    if is_validated or watcher.part(step, num_steps) > watcher.part(step - 1, num_steps):
        return observe(watcher.observe(trainer.engine, step, num_steps))
    return step % _ASK_EVERY_STEPS > 0 or observe(None)


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
