"""Artifacts: folders with a manifest, written whole or not at all.

A run directory holds one folder per artifact. Its `manifest.json` is written last, so a folder without one does not
count; on a local disk the folder also appears by one rename. A manifest says which settings and which inputs made the
artifact, and a stage that finds another answer than its own config's refuses, naming the difference.
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from scpo_ray.errors import ArtifactError
from scpo_ray.folders import (
    MANIFEST,
    digest_of,
    files_in,
    hash_folder,
    private_copies,
    remove_empty,
    scratch_folder,
    storage_errors,
)
from scpo_ray.records import SCHEMA_VERSION

CARD = "README.md"
"""A model's card, which later stages write anew; a manifest does not say how long it is."""
ROW_GROUP_SIZE = 8_192
"""Rows of a Parquet file that are read together."""
_PACKAGES = ("scpo_ray", "torch", "transformers", "ray", "deepspeed", "pyarrow", "numpy", "peft")


@dataclass(frozen=True)
class Manifest:
    """What made an artifact. `identity` are the settings that its content depends on, by dotted key."""

    name: str
    stage: str
    identity: Mapping[str, object]
    inputs: Mapping[str, str]
    """Content hash of each input artifact."""
    content_hash: str
    seed: int
    wall_time_s: float
    statistics: Mapping[str, object] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    reserved: Mapping[str, float] = field(default_factory=dict)
    """CPU and GPU that its making held at one time; empty where it was made in the job's own process."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each file, so that one that was cut short or deleted is noticed without reading any."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file, where `content_hash` does not depend on all of them: of models."""
    schema_version: int = SCHEMA_VERSION
    created: str = ""

    def __str__(self) -> str:
        counts = ", ".join(f"{key} {value}" for key, value in self.statistics.items() if isinstance(value, int | float))
        return f"{self.name}: made in {self.wall_time_s:.1f} s" + (f" ({counts})" if counts else "")


_TYPES = TypeAdapter(Manifest)


class RunDirectory:
    """The artifacts of one run, on any filesystem that pyarrow reaches."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        with storage_errors(self.address):
            if "://" in address:
                self._filesystem, self._root = pafs.FileSystem.from_uri(self.address)
            else:
                self._filesystem, self._root = pafs.LocalFileSystem(), str(Path(address).absolute())
        self.is_local = isinstance(self._filesystem, pafs.LocalFileSystem)
        self.absolute_address = self._root if self.is_local else self.address
        """The same place for a worker with another working directory."""

    def path(self, name: str) -> str:
        """Where the artifact or file is, as an address to show and to open with pyarrow."""
        return f"{self.address}/{name}"

    def find(self, name: str) -> Manifest | None:
        """The artifact's manifest, or None where there is no complete artifact.

        Raises:
            ArtifactError: the manifest is unreadable or has another schema version, or a file is not as long as it says.
        """
        manifest = self.manifest(name)
        damage = manifest and self.damage(name, manifest)
        if damage:
            raise ArtifactError(f"{damage}; delete the folder {self.path(name)} and rerun")
        return manifest

    def damage(self, name: str, manifest: Manifest) -> str | None:
        """The first file that is missing or has another length than when it was made, in words."""
        folder = f"{self._root}/{name}"
        with storage_errors(self.path(name)):
            infos = self._filesystem.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
        sizes = {info.path.removeprefix(f"{folder}/"): info.size for info in infos if info.type == pafs.FileType.File}
        for file, size in manifest.files.items():
            if file not in sizes:
                return f"{self.path(name)}/{file}: is missing"
            if sizes[file] != size:
                return f"{self.path(name)}/{file}: has {sizes[file]:,} bytes, its manifest says {size:,}"
        return None

    def manifest(self, name: str) -> Manifest | None:
        """As `find`, without a look at the files."""
        path = f"{self._root}/{name}/{MANIFEST}"
        with storage_errors(path):
            if self._filesystem.get_file_info(path).type == pafs.FileType.NotFound:
                return None
            with self._filesystem.open_input_stream(path) as stream:
                text = stream.read()
        try:
            manifest = Manifest(**json.loads(text))
            _TYPES.validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ArtifactError(
                f"{self.path(name)}/{MANIFEST}: not a manifest ({place}: {first['msg']}); delete the folder and rerun"
            ) from None
        except (ValueError, TypeError) as error:  # not JSON, not UTF-8, or not these fields
            raise ArtifactError(
                f"{self.path(name)}/{MANIFEST}: not a manifest ({error}); delete the folder and rerun"
            ) from None
        if manifest.schema_version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{self.path(name)}: schema version {manifest.schema_version}, this release reads {SCHEMA_VERSION}; "
                "delete the folder and rerun"
            )
        return manifest

    def require(self, name: str, *, job: str) -> Manifest:
        """The manifest of an artifact that must be there; the error names the job that makes it."""
        manifest = self.find(name)
        if manifest is None:
            raise ArtifactError(f"{self.path(name)}: no such artifact; run jobs/{job}.py first")
        return manifest

    def read_table(self, name: str, *, columns: list[str] | None = None, filters: object = None) -> pa.Table:
        """One Parquet file of an artifact: `read_table("prepared/pairs.parquet")`."""
        with storage_errors(self.path(name)):
            return pq.read_table(
                f"{self._root}/{name}", filesystem=self._filesystem, columns=columns, filters=filters, partitioning=None
            )

    @contextlib.contextmanager
    def open_parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """One Parquet file of an artifact, to be read by row groups."""
        with (
            storage_errors(self.path(name)),
            pq.ParquetFile(f"{self._root}/{name}", filesystem=self._filesystem) as file,
        ):
            yield file

    def read_json(self, name: str) -> dict:
        """One JSON file of an artifact."""
        with storage_errors(self.path(name)), self._filesystem.open_input_stream(f"{self._root}/{name}") as stream:
            return json.loads(stream.read())

    def read_text(self, name: str) -> str:
        """One text file of an artifact."""
        with storage_errors(self.path(name)), self._filesystem.open_input_stream(f"{self._root}/{name}") as stream:
            return stream.read().decode("utf-8")

    def names(self, folder: str) -> list[str]:
        """File and folder names directly inside a folder, sorted; empty where there is none."""
        with storage_errors(self.path(folder)):
            infos = self._filesystem.get_file_info(pafs.FileSelector(f"{self._root}/{folder}", allow_not_found=True))
        return sorted(info.base_name for info in infos)

    def folders(self, folder: str) -> list[str]:
        """Names of folders directly inside a folder, sorted, hidden ones left out; empty where there is none."""
        with storage_errors(self.path(folder)):
            infos = self._filesystem.get_file_info(pafs.FileSelector(f"{self._root}/{folder}", allow_not_found=True))
        names = (info.base_name for info in infos if info.type == pafs.FileType.Directory)
        return sorted(name for name in names if not name.startswith("."))

    def shared_address(self, name: str) -> str:
        """Of an artifact, for workers on other nodes; `local_copy` makes a folder of it there."""
        return f"{self.absolute_address}/{name}"

    def fetch(self, name: str) -> Path:
        """An artifact's folder; of a remote run a copy on this machine, made once for its content, and never changed.

        Raises:
            ArtifactError: it is remote, and not complete.
            StorageError: it cannot be copied.
        """
        if self.is_local:
            return Path(self._root) / name
        manifest = self.find(name)
        if manifest is None:
            raise ArtifactError(f"{self.path(name)}: no such artifact")
        target = private_copies() / manifest.content_hash / Path(name).name
        if not target.is_dir():
            with storage_errors(str(target)):
                staging = scratch_folder(target.parent, target.name)
            self.copy(name, staging)
            with contextlib.suppress(OSError):  # another process was first
                staging.rename(target)
            shutil.rmtree(staging, ignore_errors=True)
        return target

    def copy(self, name: str, target: Path) -> None:
        """All files of an artifact, as they are now, into a folder of this machine."""
        with storage_errors(self.path(name)):
            pafs.copy_files(f"{self._root}/{name}", str(target), source_filesystem=self._filesystem)

    def remove(self, name: str) -> None:
        """Delete a folder, manifest first, so that what is left never counts."""
        with storage_errors(self.path(name)):
            folder = f"{self._root}/{name}"
            if self._filesystem.get_file_info(f"{folder}/{MANIFEST}").type != pafs.FileType.NotFound:
                self._filesystem.delete_file(f"{folder}/{MANIFEST}")
            if self._filesystem.get_file_info(folder).type != pafs.FileType.NotFound:
                self._filesystem.delete_dir(folder)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local folder to fill; it becomes `name` when the block ends, and vanishes when the block raises."""
        with storage_errors(self.path(name)):
            if self.is_local:
                parent = (Path(self._root) / name).parent
                is_new = not Path(self._root).exists()
                staging = scratch_folder(parent, Path(name).name)
            else:
                staging = Path(tempfile.mkdtemp(prefix="scpo-"))
            try:
                yield staging
                self._publish(staging, name)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
                if self.is_local and is_new:
                    remove_empty(parent, Path(self._root))

    def _publish(self, staging: Path, name: str) -> None:
        if not self.is_local:
            self.remove(name)
            manifest = staging / MANIFEST
            text = manifest.read_bytes()
            manifest.unlink()
            pafs.copy_files(str(staging), f"{self._root}/{name}", destination_filesystem=self._filesystem)
            with self._filesystem.open_output_stream(f"{self._root}/{name}/{MANIFEST}") as stream:
                stream.write(text)
            return
        target = Path(self._root) / name
        retired = staging.with_suffix(".old")
        for is_last in (*[False] * 9, True):
            with contextlib.suppress(FileNotFoundError):
                target.rename(retired)
            try:
                staging.rename(target)
            except OSError as error:  # another process has put its own there since
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or is_last:
                    raise
            else:
                break
            finally:
                shutil.rmtree(retired, ignore_errors=True)

    def write_file(self, name: str, content: bytes) -> None:
        """One file outside any artifact (the report, the resolved config), replaced atomically on a local disk."""
        with storage_errors(self.path(name)):
            target = f"{self._root}/{name}"
            self._filesystem.create_dir(os.path.dirname(target), recursive=True)
            temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp" if self.is_local else target
            try:
                with self._filesystem.open_output_stream(temporary) as stream:
                    stream.write(content)
                if self.is_local:
                    os.replace(temporary, target)
            except OSError:
                with contextlib.suppress(OSError):
                    self._filesystem.delete_file(temporary)
                raise


@dataclass(frozen=True)
class Recipe:
    """What an artifact should be made of, so that one on disk can be recognised or refused."""

    name: str
    stage: str
    identity: Mapping[str, object]
    inputs: Mapping[str, str]
    seed: int
    reserved: Mapping[str, float] = field(default_factory=dict)
    """What making it holds at one time (see Manifest); no part of what the artifact is."""

    def is_made(self, run: RunDirectory, *, rebuild: bool) -> Manifest | None:
        """The manifest of the artifact on disk when it is this recipe's; None when it is to be made.

        Raises:
            ArtifactError: another config or other inputs made it, and `rebuild` is off.
        """
        manifest = run.find(self.name)
        if manifest is None:
            return None
        difference = self.difference(manifest)
        if difference is None:
            return manifest
        if rebuild:
            return None
        raise ArtifactError(
            f"{run.path(self.name)}: {difference}; use another --run_dir, or --rebuild true to remake it and what follows"
        )

    def difference(self, manifest: Manifest) -> str | None:
        """The first setting or input in which the manifest differs, in words; None when it is the same recipe."""
        wanted = json.loads(json.dumps(dict(self.identity)))
        for key in sorted({*wanted, *manifest.identity}):
            was, now = manifest.identity.get(key, "unset"), wanted.get(key, "unset")
            if was != now:
                return f"made with {key} = {_show(was)}, this config has {_show(now)}"
        for key in sorted({*self.inputs, *manifest.inputs}):
            if manifest.inputs.get(key) != self.inputs.get(key):
                return f"made from another {key} (it has changed since)"
        return None

    @contextlib.contextmanager
    def making(self, run: RunDirectory) -> Iterator["Draft"]:
        """Fill `draft.folder`; the manifest is added and the artifact appears when the block ends."""
        start = time.monotonic()
        with run.writing(self.name) as folder:
            draft = Draft(folder)
            yield draft
            kept = {str(path.relative_to(folder)): path for path in files_in(folder) if path.name != CARD}
            manifest = Manifest(
                name=self.name,
                stage=self.stage,
                identity=self.identity,
                inputs=self.inputs,
                content_hash=draft.content_hash or hash_folder(folder),
                seed=self.seed,
                wall_time_s=round(time.monotonic() - start, 3),
                statistics=draft.statistics,
                packages=_package_versions(),
                reserved=self.reserved,
                files={name: path.stat().st_size for name, path in kept.items()},
                digests={name: digest_of(path) for name, path in kept.items()} if draft.content_hash else {},
                created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
            (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2, ensure_ascii=False))


@dataclass
class Draft:
    """An artifact in the making."""

    folder: Path
    statistics: dict[str, object] = field(default_factory=dict)
    content_hash: str | None = None
    """Set it where equal content may have unequal bytes; else the files are hashed."""

    def write_table(self, name: str, table: pa.Table) -> None:
        """One Parquet file of the artifact."""
        pq.write_table(table, self.folder / name, compression="zstd", row_group_size=ROW_GROUP_SIZE)

    def write_json(self, name: str, value: object) -> None:
        """One JSON file of the artifact."""
        (self.folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False))


def content_hash_of(*parts: object) -> str:
    """A hash of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def local_copy(address: str) -> Path:
    """The folder of a remote artifact's copy on this machine.

    Args:
        address: what `RunDirectory.shared_address` gives, of a remote run.
    """
    place, _, name = address.rstrip("/").rpartition("/")
    return RunDirectory(place).fetch(name)


def wrong_file(folder: Path, manifest: Manifest) -> str | None:
    """The first file in a copy of an artifact whose content is not what its digest says."""
    for name, digest in manifest.digests.items():
        if digest_of(folder / name) != digest:
            return name
    return None


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
