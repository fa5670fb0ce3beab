"""Where each rank stood when a step did not end: a rank that hangs takes the others with it, and says nothing itself."""

import contextlib
import faulthandler
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from scpo_ray.training.task import TrainingTask, checkpoint_folder

_ATTEMPTS = 3
"""At a file whose empty folders another training may be removing."""
_NUM_OWN_FOLDERS = 3
"""`logs/stacks/DIGEST`."""


class Stacks:
    """A file per rank, with the stacks of all its threads; no file where every step ended in time, or none can be written.

    Args:
        limit_s: of a step. Collectives that wait as long raise, a moment later.
    """

    def __init__(self, folder: Path, rank: int, *, limit_s: float) -> None:
        self._path, self._limit_s = folder / f"rank_{rank}.txt", limit_s
        self._file: IO[str] | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator["Stacks"]:
        """Open while the block lasts."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(OSError):  # of one rank alone: no reason to stop it, and leave the others waiting
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a")
                break
        try:
            yield self
        finally:
            if self._file is not None:
                self._file.close()
                self._remove_empty()

    @contextlib.contextmanager
    def of_step(self) -> Iterator[None]:
        """Write the stacks if the block takes longer than the limit; it goes on all the same."""
        if self._file is not None:
            faulthandler.dump_traceback_later(self._limit_s, file=self._file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _remove_empty(self) -> None:
        with contextlib.suppress(OSError):  # a folder is gone, or others' files are there
            if not self._path.stat().st_size:
                self._path.unlink()
                for folder in self._path.parents[:_NUM_OWN_FOLDERS]:
                    folder.rmdir()


def has_stacks(folder: Path, since: float) -> bool:
    """Whether a rank has written where it stood; a killed one leaves an empty file.

    Args:
        since: seconds since the epoch.
    """
    for path in folder.glob("rank_*.txt"):
        with contextlib.suppress(FileNotFoundError):  # its rank has just removed it
            found = path.stat()
            if found.st_size and found.st_mtime >= since:
                return True
    return False


def stacks_folder(task: TrainingTask) -> Path:
    """In the run's logs; beside the checkpoints where the run directory is no disk."""
    folder = checkpoint_folder(task)
    if "://" in task.run_address:
        return folder.with_name("logs") / "stacks" / folder.name
    return Path(task.run_address, "logs", "stacks", folder.name)
