"""Another checkpoint's weights in a model that is there already: what building it anew would give, in a fraction of the time."""

import functools
import hashlib
import json
import os
import time
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


class ReplaceableWeights:
    """A model's weights, in whose place those of other checkpoints of its kind can be put.

    PyTorch's own `load_state_dict` walks through all modules and their hooks, which takes longer than the rest; parameters that
    are known take other weights at once.

    Args:
        maps: leave weights in their file, which must be replaced and never written into, as must those that transformers loads;
            else they are copied into the memory that the model has already.
    """

    def __init__(self, model: PreTrainedModel, *, maps: bool) -> None:
        self._own = model.state_dict(keep_vars=True)
        self._shapes = {name: tensor.shape for name, tensor in self._own.items()}
        self._maps = maps

    def take(self, folder: Path) -> bool:
        """Put a checkpoint's weights into the model.

        Returns:
            False where its tensors have other names or shapes than the model's, which is then as it was.

        Raises:
            ModelError: they cannot be read.
        """
        try:
            found = _read(folder)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{folder}: cannot be loaded as a reward model ({str(error).splitlines()[0][:200]})"
            ) from error
        if {name: tensor.shape for name, tensor in found.items()} != self._shapes:
            return False
        for name, tensor in found.items():
            own = self._own[name]
            if self._maps:
                own.data = tensor.to(own.dtype)
            else:
                own.data.copy_(tensor)
        return True


def _read(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint in one file or several; none where there are no safetensors."""
    files = [folder / _WEIGHTS]
    if not files[0].is_file():
        index = folder / _INDEX
        places = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
        files = [folder / name for name in sorted(set(places.values()))]
    found: dict[str, Tensor] = {}
    for path in files:
        found |= load_file(path)
    return found
