"""Another checkpoint's weights in a model that is there already: what building it anew would give, in a fraction of the time."""

import functools
import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from scpo_ray.errors import ModelError

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_READ = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""What configurations and tokenizers are made of."""
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
                digest.update(
                    f"{path.name} {state.st_size} ".encode()
                    + _digest(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
                )
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, *state: int) -> bytes:
    """Of a file's content; read once for each state that the file was in."""
    return hashlib.sha256(path.read_bytes()).digest()


class ReplaceableWeights:
    """A model's weights, in whose place those of other checkpoints of its kind can be put.

    PyTorch's own `load_state_dict` walks through all modules and their hooks, which took 4 of the 10 ms that a change of models
    took here; parameters that are known take other weights at once.

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
