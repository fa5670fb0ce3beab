"""Where an unfinished policy is kept: what learners hold, and beside it what the controller must remember."""

import math
import shutil
import time
from pathlib import Path

from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.config import LearnerConfig
from scpo_ray.folders import storage_errors
from scpo_ray.ppo.actors import Failures
from scpo_ray.ppo.learners import Learners
from scpo_ray.training.task import checkpoints_of, newest_checkpoint, refuse_other_layout, remove_checkpoints

_UNDER_NOTICE_S = 10.0
FOLDERS = {"sft": "sft_checkpoints", "ppo": "policy_checkpoints"}
"""Stage -> where in the run directory; apart from reward models' checkpoints, which go when all of those are trained."""


def checkpoints_in(directory: RunDirectory, recipe: Recipe, config: LearnerConfig) -> "PolicyCheckpoints":
    """Of a policy that is being made."""
    return PolicyCheckpoints(recipe, directory.absolute_address, config.checkpoint_dir)


class PolicyCheckpoints:
    """A folder of `step_N`, of which the newest counts. Its name holds the recipe, so another config never finds it."""

    def __init__(self, recipe: Recipe, run_address: str, place: str | None) -> None:
        self._recipe, self._run_address, self._place = recipe, run_address, place
        self._folder = checkpoints_of(recipe, FOLDERS[recipe.stage], run_address=run_address, place=place)
        self._saved = -math.inf

    def is_due(self, step: int, *, every: int, failures: Failures) -> bool:
        """After `step` steps: every so many, and under notice that a node goes, as often as 10 s allow."""
        is_announced = failures.watch()
        return step % every == 0 or (is_announced and time.monotonic() - self._saved >= _UNDER_NOTICE_S)

    def newest(self) -> Path | None:
        """The last complete checkpoint."""
        found = sorted(self._folder.glob("step_*")) if self._folder.is_dir() else []
        return found[-1] if found else None

    def refuse_other_layout(self, config: LearnerConfig, section: str) -> None:
        """Before learners start that could not read it.

        Args:
            section: of the settings, for the message.

        Raises:
            TrainingError: another number of learners wrote the newest, or another ZeRO stage.
        """
        refuse_other_layout(
            newest_checkpoint(self._folder),
            config.num_learners,
            config.zero_stage,
            section=f"{section}.",
            ranks="num_learners",
            is_elastic=False,
        )

    def save(self, learners: Learners, step: int, state: dict) -> None:
        """Write the checkpoint after `step` steps, then drop older ones.

        Raises:
            StorageError: it cannot be written; the older ones are still there.
        """
        with storage_errors(str(self._folder)):
            self._folder.mkdir(parents=True, exist_ok=True)
        name = f"step_{step:08d}"
        if (self._folder / name).exists():
            return
        learners.save(str(self._folder / name), state)
        self._saved = time.monotonic()
        for path in self._folder.glob("step_*"):
            if path.name < name:
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Nothing of an unfinished policy is needed once its artifact is there."""
        name, folder = self._recipe.name, FOLDERS[self._recipe.stage]
        remove_checkpoints(name, folder, run_address=self._run_address, place=self._place)
