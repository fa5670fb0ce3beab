"""Another checkpoint's weights in a model that is there already: what building it anew would give, in a fraction of the time."""

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
                content = path.read_bytes()
                digest.update(f"{path.name} {len(content)} ".encode() + content)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def take_weights(model: PreTrainedModel, folder: Path, *, maps: bool) -> bool:
    """Put a checkpoint's weights into a model of the same kind.

    Args:
        maps: leave them in their file, which must be replaced and never written into, as must those that transformers loads; else
            they are copied into the memory that the model has already.

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
    own = model.state_dict()
    if {name: tensor.shape for name, tensor in found.items()} != {name: tensor.shape for name, tensor in own.items()}:
        return False
    model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in found.items()}, assign=maps)
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
