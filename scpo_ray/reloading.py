"""Another checkpoint's weights in a model that is there already: what building it anew would give, in a fraction of the time."""

import functools
import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from scpo_ray.errors import ModelError

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_READ = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""What configurations and tokenizers are made of."""
_MOMENT_NS = 2_000_000_000
_UNREADABLE = (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)
_NOT_READ = ("manifest.json", "metrics.json", "model.safetensors.index.json")


def kind_of(folder: Path) -> str:
    """Equal for models that differ in nothing but their weights: a digest of the files that configurations and tokenizers are in.

    Raises:
        ModelError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")]):
            if path.suffix in _READ and path.name not in _NOT_READ:
                state = path.stat()
                digest.update(f"{path.name} {state.st_size} ".encode() + _digest_of(path, state))
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _digest_of(path: Path, state: os.stat_result) -> bytes:
    """Of a file's content. A file that was written a moment ago may be written again before its clock ticks, so it is read; an
    older one is read once for each state that it was in, as git does."""
    written_ns = max(state.st_mtime_ns, state.st_ctime_ns)
    if time.time_ns() - written_ns < _MOMENT_NS:
        return _digest.__wrapped__(path)
    return _digest(path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, *state: int) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


_State = tuple[tuple[int, ...], ...]
"""Of a checkpoint's files, each replaced one's another."""


class MappedWeights:
    """Weights of checkpoints that were read, still mapped from their files, so that reading them again takes no time.

    What is mapped is the page cache's, which the kernel takes back where memory is short. Files must be replaced and never
    written into, as must those that transformers loads; one that was replaced is read anew. For one thread at a time.

    Args:
        max_bytes: of the files that stay mapped; those read longest ago go first.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Path, tuple[_State, int, dict[str, Tensor]]] = OrderedDict()
        self.num_bytes = 0

    def read(self, folder: Path) -> dict[str, Tensor]:
        """Every tensor of a checkpoint, not to be written into; none where there are no safetensors.

        Raises:
            _UNREADABLE: it is damaged, or cannot be mapped.
        """
        files = _files(folder)
        state = _state(files)
        if folder in self._kept and self._kept[folder][0] == state:
            self._kept.move_to_end(folder)
            return self._kept[folder][2]
        tensors = _read(files)
        if folder in self._kept:
            self.num_bytes -= self._kept.pop(folder)[1]
        size = sum(path.stat().st_size for path in files)
        if size <= self._max_bytes and _state(files) == state:  # else it was replaced meanwhile
            self._kept[folder] = state, size, tensors
            self.num_bytes += size
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._kept.popitem(last=False)[1][1]
        return tensors


class ReplaceableWeights:
    """A model's weights, in whose place those of other checkpoints of its kind can be put.

    PyTorch's own `load_state_dict` walks through all modules and their hooks, which takes longer than the rest; parameters that
    are known take other weights at once.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._own = model.state_dict(keep_vars=True)
        self._shapes = {name: tensor.shape for name, tensor in self._own.items()}

    def take(self, folder: Path, mapped: MappedWeights | None) -> bool:
        """Put a checkpoint's weights into the model.

        Args:
            mapped: they stay in their files and are read by it; None: they are copied into the memory that the model has.

        Returns:
            False where its tensors have other names or shapes than the model's, which is then as it was.

        Raises:
            ModelError: they cannot be read.
        """
        try:
            found = _read(_files(folder)) if mapped is None else mapped.read(folder)
        except _UNREADABLE as error:
            raise ModelError(
                f"{folder}: cannot be loaded as a reward model ({str(error).splitlines()[0][:200]})"
            ) from error
        if {name: tensor.shape for name, tensor in found.items()} != self._shapes:
            return False
        for name, tensor in found.items():
            own = self._own[name]
            if mapped is None:
                own.data.copy_(tensor)
            else:
                own.data = tensor.to(own.dtype)
        return True


def _files(folder: Path) -> list[Path]:
    """What a checkpoint's weights are in, one file or several; none where there are no safetensors."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    places = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
    return [folder / name for name in sorted(set(places.values()))]


def _state(files: Sequence[Path]) -> _State:
    states = [path.stat() for path in files]
    return tuple((each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in states)


def _read(files: Sequence[Path]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in files:
        found |= load_file(path)
    return found
