"""Where each rank stood when a step did not end: a rank that hangs takes the others with it, and says nothing itself."""

import contextlib
import faulthandler
from collections.abc import Iterator
from pathlib import Path

from scpo_ray.artifacts import storage_errors
from scpo_ray.training.task import TrainingTask, checkpoint_folder


class Stacks:
    """A file per rank, with the stacks of all its threads; no file where every step ended in time.

    Args:
        limit_s: of a step. Collectives that wait as long raise, a moment later.
    """

    def __init__(self, folder: Path, rank: int, *, limit_s: float) -> None:
        self._path, self._limit_s = folder / f"rank_{rank}.txt", limit_s

    @contextlib.contextmanager
    def watching(self) -> Iterator["Stacks"]:
        """Open while the block lasts."""
        with storage_errors(str(self._path)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a")
        with file:
            self._file = file
            try:
                yield self
            finally:
                if not self._path.stat().st_size:
                    self._path.unlink()
                    with contextlib.suppress(OSError):  # others' files are there
                        self._path.parent.rmdir()

    @contextlib.contextmanager
    def of_step(self) -> Iterator[None]:
        """Write the stacks if the block takes longer than the limit; it goes on all the same."""
        faulthandler.dump_traceback_later(self._limit_s, file=self._file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def stacks_folder(task: TrainingTask) -> Path:
    """Beside the checkpoints of the task."""
    folder = checkpoint_folder(task)
    return folder.with_name(f"{folder.name}.stacks")
