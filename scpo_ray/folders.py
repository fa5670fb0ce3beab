"""Folders on this machine: scratch space that is swept, private copies, hashes of files, and what a failing disk says."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from scpo_ray.errors import StorageError

MANIFEST = "manifest.json"
"""The file that makes a folder an artifact; it is no part of what it describes."""
_HOST = re.sub(r"\W", "-", socket.gethostname())
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Operating-system and Arrow I/O failures as one StorageError that names the place and the remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0][:300]
        if error.errno in _OUT_OF_SPACE:
            remedy = "nothing of it was kept; free space and rerun, finished work is not repeated"
        else:
            remedy = "check that the path exists and may be read and written, then rerun"
        raise StorageError(f"{error.filename or place}: {reason}; {remedy}") from error
    except pa.ArrowInvalid as error:
        raise StorageError(f"{place}: {str(error).splitlines()[0]}") from error


def files_in(folder: Path) -> list[Path]:
    """Every file below a folder, the manifest left out, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path) -> str:
    """SHA-256 over the names and bytes of every file below a folder, the manifest left out."""
    digest = hashlib.sha256()
    for path in files_in(folder):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def scratch_folder(parent: Path, name: str) -> Path:
    """A new hidden folder in `parent` that is swept once its process is dead."""
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    folder = parent / f".{name}.{_HOST}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    folder.mkdir()
    return folder


def private_copies() -> Path:
    """Where copies of remote artifacts lie: this user's alone, since what is found there is taken for what it is named.

    Raises:
        StorageError: it is another user's, or cannot be made.
    """
    folder = Path(tempfile.gettempdir(), f"scpo_ray-copies-{os.getuid()}")
    with storage_errors(str(folder)):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
            raise StorageError(
                f"{folder}: a link, another user's, or open to others, who could change models there; remove it, or set TMPDIR"
            )
    return folder


def remove_empty(folder: Path, root: Path) -> None:
    """Delete empty folders from `folder` up to `root`: a run that was refused leaves nothing."""
    with contextlib.suppress(OSError):  # not empty: something is there to keep
        for path in (folder, *folder.parents):
            path.rmdir()
            if path == root:
                break


def _sweep(parent: Path) -> None:
    """Delete what killed writers of this machine left in a folder; another machine's may still be at work."""
    for path in parent.glob(f".*.{_HOST}.*.*.*"):
        writer, suffix = path.name.split(".")[-3], path.suffix
        if suffix in (".tmp", ".old") and writer.isdigit() and not _is_running(int(writer)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
