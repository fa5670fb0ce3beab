"""Another checkpoint's weights in a model that is there already: what building it anew would give, in a fraction of the time."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from scpo_ray.errors import ModelError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def tokenizer_digest(folder: Path) -> str:
    """Equal for models that read texts alike."""
    return _digest(folder, _TOKENIZER_FILES)


def kind_of(folder: Path) -> str:
    """Equal for models that differ in nothing but their weights."""
    return _digest(folder, ("config.json", *_TOKENIZER_FILES))


def take_weights(model: PreTrainedModel, folder: Path) -> bool:
    """Put a checkpoint's weights into a model of the same kind. On a CPU they are mapped, not copied.

    Returns:
        False where its tensors have other names or shapes than the model's, which is then as it was.

    Raises:
        ModelError: they cannot be read.
    """
    try:
        found = _read(folder)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(
            f"{folder}: cannot be loaded as a reward model ({str(error).splitlines()[0][:200]})"
        ) from error
    own = model.state_dict()
    if {name: tensor.shape for name, tensor in found.items()} != {name: tensor.shape for name, tensor in own.items()}:
        return False
    model.load_state_dict(
        {name: tensor.to(own[name].dtype) for name, tensor in found.items()},
        assign=model.device.type == "cpu",  # elsewhere into the memory that the model has already
    )
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


def _digest(folder: Path, names: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        content = path.read_bytes() if path.is_file() else None
        digest.update(f"{-1 if content is None else len(content)} ".encode() + (content or b""))
    return digest.hexdigest()
