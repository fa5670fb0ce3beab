"""Where the global reward model lies, for the stages that read it."""

from pathlib import Path

from scpo_ray import model_files
from scpo_ray.artifacts import RunDirectory
from scpo_ray.stages.recipes import GLOBAL_MODEL

REFERENCE = "reference.json"
"""In place of weights, when the global model is somebody else's checkpoint, taken as it is."""


def global_model_address(directory: RunDirectory) -> str:
    """A folder, `package:` address or hub name that `model_files.resolve` understands."""
    if REFERENCE in directory.names(GLOBAL_MODEL):
        return str(directory.read_json(f"{GLOBAL_MODEL}/{REFERENCE}")["address"])
    return directory.shared_address(GLOBAL_MODEL)


def global_model_folder(directory: RunDirectory) -> Path:
    """The local folder of the global model."""
    return model_files.resolve(global_model_address(directory))
