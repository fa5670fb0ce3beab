"""One job at a time is in a stage of a run: a submission that is repeated while the first one runs waits for it, and finds
everything made."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from scpo_ray.artifacts import RunDirectory, content_hash_of
from scpo_ray.folders import storage_errors
from scpo_ray.runtime import console


@contextlib.contextmanager
def turn(
    directory: RunDirectory, stage: str, checkpoint_dir: str | None, *, of: Sequence[str] | None = None
) -> Iterator[None]:
    """Wait until no other process is in this stage of this run, and keep others out while the block lasts.

    Args:
        checkpoint_dir: a disk, for runs on an object store.
        of: what is made, where jobs may share a stage's work among them: a job waits for those that make one of the same, and
            for no other. Each has a lock, taken in one order, so that two jobs never wait for each other.

    The lock is a file's (`flock`), which ends with its process, however that ends. It lies in the run directory, or, of a run on
    an object store, among the unfinished trainings; whoever shares that disk, on whatever node, respects it. Where there is no
    disk (scoring alone, on an object store) there is no lock: what is made twice there is the same.

    Raises:
        StorageError: the file cannot be written.
    """
    works = [stage] if of is None else sorted(f"{stage}-{content_hash_of(name)[:16]}" for name in set(of))
    with contextlib.ExitStack() as stack:
        for work in works:
            stack.enter_context(_turn(directory, stage, work, checkpoint_dir))
        yield


@contextlib.contextmanager
def _turn(directory: RunDirectory, stage: str, work: str, checkpoint_dir: str | None) -> Iterator[None]:
    if directory.is_local:
        path = Path(directory.absolute_address, f".{work}.lock")
    elif checkpoint_dir is None:
        yield
        return
    else:
        path = Path(checkpoint_dir, f".{content_hash_of(directory.address)[:16]}.{work}.lock")
    is_new = not path.parent.exists()
    with _held(path, stage):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # still held: who waits for it notices, and takes the next
            if is_new:
                with contextlib.suppress(OSError):  # not empty: a job that was refused leaves nothing
                    path.parent.rmdir()


@contextlib.contextmanager
def _held(path: Path, stage: str) -> Iterator[None]:
    while True:
        with storage_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        with file:
            _acquire(file, stage, path)
            if _is_there(file, path):
                yield
                return


def _is_there(file: IO[str], path: Path) -> bool:
    """Whether it is still the file of that name; its holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _acquire(file: IO[str], stage: str, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        console.print(f"{stage}: waiting for {file.read(200) or 'another process'}, which is at it already ({path})")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        console.print(
            f"{path}: this file system has no locks ({error.strerror}); start no second job on this run meanwhile"
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
