"""What is kept of an unfinished training."""

import os
import shutil
from pathlib import Path

import torch

from scpo_ray.errors import TrainingError
from scpo_ray.folders import storage_errors
from scpo_ray.training import engine as engines
from scpo_ray.training.task import (
    TrainingTask,
    checkpoint_folder,
    newest_checkpoint,
    refuse_other_layout,
    remove_checkpoints,
)
from scpo_ray.training.trainer import Trainer


class Checkpoints:
    """Where an unfinished training is kept; the folder's name holds the recipe, so another config never finds it."""

    def __init__(self, task: TrainingTask, trainer: Trainer) -> None:
        self._task, self._trainer = task, trainer
        self._folder = checkpoint_folder(task)

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one.

        Raises:
            TrainingError: it was written under another ZeRO stage, or under one that needs as many workers as before; or the
                best weights up to then are gone.
        """
        trainer = self._trainer
        found = newest_checkpoint(self._folder)
        refuse_other_layout(found, trainer.world_size, trainer.config.zero_stage, is_elastic=True)
        if found is not None:
            trainer.restore(engines.load_checkpoint({"state": trainer.engine}, found.folder))
            best = self._best_file
            if best is not None and not best.is_file():
                raise TrainingError(f"{best}: is missing; delete {self._folder} to begin this training again")

    def save(self, *, elapsed_s: float) -> None:
        """Write the checkpoint of this step, then drop older ones and weights that are no longer the best."""
        trainer = self._trainer
        state = {
            "step": trainer.step,
            "seed": trainer.seed,
            "losses": trainer.losses,
            "validation_losses": trainer.validation_losses,
            "num_pairs": trainer.num_pairs,
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
        path = self._best_file
        if path is None or self._trainer.best_step != self._trainer.step:
            return
        state = engines.gather_state(self._trainer.engine)
        with engines.raised_on_every_rank(), storage_errors(str(path)):
            if state is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
                torch.save(state, path.with_suffix(".tmp"))
                os.replace(path.with_suffix(".tmp"), path)

    def best(self) -> tuple[int, dict[str, torch.Tensor]] | None:
        """(step, weights) of the best validation, on rank 0, when the config keeps them."""
        step, path = self._trainer.best_step, self._best_file
        if step is None or path is None:
            return None
        return step, torch.load(path, weights_only=True)

    @property
    def _best_file(self) -> Path | None:
        """Where weights of the best validation so far are, when the config keeps them and there was one."""
        step = self._trainer.best_step
        return None if self._trainer.config.keep != "best" or step is None else self._folder / f"best_{step}.pt"

    def remove(self) -> None:
        """Nothing of an unfinished training is needed once its artifact is there."""
        task = self._task
        remove_checkpoints(
            task.recipe.name, "checkpoints", run_address=task.run_address, place=task.config.checkpoint_dir
        )

    def discard(self) -> None:
        """Of a training that leaves no artifact: others of its name, with other settings, may be at work."""
        shutil.rmtree(self._folder, ignore_errors=True)
