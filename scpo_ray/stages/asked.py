"""What the last training was asked for, and what of it failed: kept beside a run's artifacts for `scpo_ray runs`, which knows no
config."""

import json
from collections.abc import Iterable, Mapping

from scpo_ray.artifacts import RunDirectory
from scpo_ray.errors import ArtifactError

FILES = {"train": "training.json", "ppo": "policy_training.json"}
"""Stage -> file in the run directory."""


def write(directory: RunDirectory, stage: str, wanted: Iterable[str], failed: Mapping[str, str]) -> None:
    """Note it, in place of what the training before was asked for.

    Args:
        wanted: names of all artifacts, those included that are there.
        failed: name -> why it was given up.
    """
    said = {"wanted": list(wanted), "failed": dict(failed)}
    directory.write_file(FILES[stage], json.dumps(said, indent=1).encode())


def read(directory: RunDirectory, stage: str) -> tuple[list[str], set[str]]:
    """What was asked for, and what failed; both empty before the first training, and for stages that note nothing.

    Raises:
        ArtifactError: the file is damaged.
    """
    name = FILES.get(stage)
    if name is None or name not in directory.names(""):
        return [], set()
    try:
        said = directory.read_json(name)
        return [str(one) for one in said["wanted"]], {str(one) for one in said["failed"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{directory.path(name)}: not what a training writes ({error}); rerun jobs/{stage}.py"
        ) from None
