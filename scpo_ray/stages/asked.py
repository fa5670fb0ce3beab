"""What trainings were asked for, and what of it failed: kept beside a run's artifacts for `scpo_ray runs`, which knows no
config."""

import json
from collections.abc import Iterable, Mapping

from scpo_ray.artifacts import RunDirectory
from scpo_ray.errors import ArtifactError
from scpo_ray.stages.turns import turn

FILES = {"train": "training.json", "ppo": "policy_training.json"}
"""Stage -> file in the run directory."""


def write(
    directory: RunDirectory,
    stage: str,
    wanted: Iterable[str],
    failed: Mapping[str, str],
    *,
    checkpoint_dir: str | None,
    adds: bool,
) -> None:
    """Note it.

    Args:
        wanted: names of all artifacts, those included that are there.
        failed: name -> why it was given up.
        checkpoint_dir: a disk, for runs on an object store.
        adds: beside what was noted of other artifacts, as jobs do that make a part of what a run is to have; else in place of it.
    """
    with turn(directory, FILES[stage], checkpoint_dir):
        before, reasons = _noted(directory, stage) if adds else ([], {})
        names = list(wanted)
        others = [name for name in before if name not in names]
        failures = {name: why for name, why in reasons.items() if name in others}
        noted = {"wanted": [*others, *names], "failed": failures | dict(failed)}
        directory.write_file(FILES[stage], json.dumps(noted, indent=1).encode())


def _noted(directory: RunDirectory, stage: str) -> tuple[list[str], dict[str, str]]:
    try:
        return _read(directory, stage)
    except ArtifactError:
        return [], {}  # as the error says to do: the training writes it anew


def read(directory: RunDirectory, stage: str) -> tuple[list[str], set[str]]:
    """What was asked for, and what failed; both empty before the first training, and for stages that note nothing.

    Raises:
        ArtifactError: the file is damaged.
    """
    wanted, failed = _read(directory, stage)
    return wanted, set(failed)


def _read(directory: RunDirectory, stage: str) -> tuple[list[str], dict[str, str]]:
    name = FILES.get(stage)
    if name is None or name not in directory.names(""):
        return [], {}
    try:
        said = directory.read_json(name)
        return [str(one) for one in said["wanted"]], {str(one): str(why) for one, why in said["failed"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{directory.path(name)}: not what a training writes ({error}); rerun jobs/{stage}.py"
        ) from None
