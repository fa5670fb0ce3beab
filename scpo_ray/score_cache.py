"""Rewards by content: (model hash, formatter, precision) -> response id -> reward. Shared by runs and sweeps."""

import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from scpo_ray.folders import storage_errors
from scpo_ray.records import SCORES, content_id


class ScoreCache:
    """Parquet shards in one folder per key; a shard appears whole, so a killed scorer loses its last window at most.

    Args:
        address: root of all caches, a path or s3:// address.
        model_hash: content of the model.
        formatter: identity of the formatter.
        precision: what the forward pass computes in.
    """

    def __init__(self, address: str, *, model_hash: str, formatter: str, precision: str) -> None:
        self.model_hash = model_hash
        self._key = content_id(model_hash, formatter, precision)
        with storage_errors(address):
            if "://" in address:
                self._filesystem, root = pafs.FileSystem.from_uri(address)
            else:
                self._filesystem, root = pafs.LocalFileSystem(), str(Path(address).absolute())
            self._folder = f"{root}/{self._key}"
            self._filesystem.create_dir(self._folder, recursive=True)

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Every score of this key; a response that two scorers computed at once appears once."""
        with storage_errors(self._folder):
            files = [
                info.path
                for info in self._filesystem.get_file_info(pafs.FileSelector(self._folder))
                if info.path.endswith(".parquet")
            ]
            if not files:
                return SCORES.empty_table().select(columns or SCORES.names)
            table = pads.dataset(sorted(files), schema=SCORES, filesystem=self._filesystem).to_table(columns=columns)
        seen: dict[str, int] = {}
        for index, identifier in enumerate(table["response_id"].to_pylist()):
            seen.setdefault(identifier, index)
        return table if len(seen) == len(table) else table.take(pa.array(seen.values()))

    def append(self, scores: pa.Table) -> None:
        """Add a shard."""
        path = f"{self._folder}/{uuid.uuid4().hex}.parquet"
        with storage_errors(path):
            if not isinstance(self._filesystem, pafs.LocalFileSystem):
                pq.write_table(scores, path, filesystem=self._filesystem)
                return
            try:
                pq.write_table(scores, f"{path}.tmp")
                os.replace(f"{path}.tmp", path)
            finally:
                Path(f"{path}.tmp").unlink(missing_ok=True)
