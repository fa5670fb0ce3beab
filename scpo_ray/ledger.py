"""What runs there are, how far each is, what it cost and whether it is whole: read from the manifests, on any storage; beside
them only what the last training was asked for is kept."""

import contextlib
import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from scpo_ray import model_files
from scpo_ray.artifacts import Manifest, RunDirectory, wrong_file
from scpo_ray.errors import ArtifactError
from scpo_ray.folders import MANIFEST, hash_folder
from scpo_ray.stages import asked
from scpo_ray.stages.global_model import REFERENCE, global_model_folder
from scpo_ray.stages.recipes import GLOBAL_MODEL

STAGES = {
    "prepare": ("prepared",),
    "train_global": ("global_model", "other_ruler"),
    "score": ("scores", "other_scores"),
    "select": ("decisions",),
    "train": ("reward_models", "controls", "replicates"),
    "evaluate": ("evaluation", "model_evaluation"),
    "tune": ("tune",),
    "sft": ("start_policy",),
    "ppo": ("policies", "composed_policies", "policy_evaluation"),
    "best_of_n": ("best_of_n",),
}
"""Stage -> artifacts, or folders of them."""
_UNFINISHED = {
    "train_global": "checkpoints",
    "train": "checkpoints",
    "sft": "sft_checkpoints",
    "ppo": "policy_checkpoints",
}
"""Stage -> where its checkpoints are by default; elsewhere (`checkpoint_dir`) they are not seen."""
_NOT_RESULTS = ("claim", "data")
"""What a search keeps beside its result."""
_DEEPEST = 4
"""Folders between a run directory and its deepest artifact: replicates/1/controls/ARM/COMMUNITY."""


@dataclass(frozen=True)
class StageRecord:
    """A stage of a run."""

    run: str
    stage: str
    num_artifacts: int
    num_missing: int
    """Models that the last training was asked for and has not made."""
    num_failed: int
    """Those of them that it gave up."""
    damage: str
    """The first manifest that is none, or file that is not as it was made, in words; "" where all are."""
    is_unfinished: bool
    """Something is checkpointed that no artifact has come of: it is at work, or was stopped."""
    finished: str
    """When the last artifact was made, UTC."""
    wall_time_s: float
    """Of all its artifacts, one after another."""
    num_tokens: int
    hours: Mapping[str, float]
    """CPU and GPU hours that were reserved for it."""

    @property
    def status(self) -> str:
        """Damaged, failed (a model was given up), unfinished or made."""
        if self.damage:
            return "damaged"
        if self.num_failed:
            return "failed"
        return "unfinished" if self.is_unfinished or self.num_missing else "made"

    @property
    def progress(self) -> str:
        """Number of artifacts, and of how many where some are missing."""
        made = self.num_artifacts
        return f"{made} of {made + self.num_missing}" if self.num_missing else str(made)


@dataclass(frozen=True)
class Prices:
    """Of what is reserved, per hour, in one currency."""

    cpu: float = 0.0
    gpu: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.cpu or self.gpu)

    def of(self, record: StageRecord) -> float:
        """What a stage cost."""
        return self.cpu * record.hours["CPU"] + self.gpu * record.hours["GPU"]


def runs_in(root: str) -> list[str]:
    """Addresses of run directories: `root` itself, or folders directly in it.

    Raises:
        ArtifactError: there is none.
        StorageError: it cannot be read.
    """
    if _is_run(RunDirectory(root)):
        return [root]
    place = RunDirectory(root)
    found = [f"{root.rstrip('/')}/{name}" for name in place.folders("") if _is_run(RunDirectory(place.path(name)))]
    if not found:
        raise ArtifactError(
            f"{root}: no run there, nor in its folders; give a run directory, or the folder that holds them"
        )
    return found


def records(address: str) -> list[StageRecord]:
    """Of every stage that has left something."""
    run, found = RunDirectory(address), []
    has_ruler = _has_manifest(run, "global_model")
    for stage, folders in STAGES.items():
        places = [place for folder in folders for place in _artifacts(run, folder, _DEEPEST)]
        unfinished = _is_begun(run, stage)
        if stage in ("train_global", "train"):
            unfinished = unfinished and has_ruler == (stage == "train")
        damage = next(filter(None, (_damage(run, *place) for place in places)), "")
        missing = failed = 0
        try:
            missing, failed = _missing(run, stage, {name for name, _ in places})
        except ArtifactError as error:
            damage = damage or str(error)
        if places or unfinished or missing or damage:
            manifests = [manifest for _, manifest in places if isinstance(manifest, Manifest)]
            found.append(
                _record(
                    address,
                    stage,
                    manifests,
                    damage=damage,
                    is_unfinished=unfinished,
                    num_missing=missing,
                    num_failed=failed,
                )
            )
    return found


def _missing(run: RunDirectory, stage: str, made: Container[str]) -> tuple[int, int]:
    """Numbers of models that are asked for and not there, and of those that failed.

    Raises:
        ArtifactError: the file that says so is damaged.
    """
    wanted, failed = asked.read(run, stage)
    missing = [name for name in wanted if name not in made]
    return len(missing), sum(name in failed for name in missing)


def _damage(run: RunDirectory, name: str, manifest: Manifest | str) -> str | None:
    return manifest if isinstance(manifest, str) else run.damage(name, manifest)


def _is_begun(run: RunDirectory, stage: str) -> bool:
    """Whether a stage has left something that is still to become an artifact."""
    if stage == "tune":
        searches = run.folders("tune")
        return any(
            "trials" in run.names(f"tune/{name}") and not _has_manifest(run, f"tune/{name}/result") for name in searches
        )
    folder = _UNFINISHED.get(stage)
    return folder is not None and any(not name.startswith(".") for name in run.names(folder))


def table(addresses: Sequence[str], prices: Prices = Prices()) -> Table:
    """For the terminal; with prices also what it cost."""
    shown, cost = Table(), ("cost",) if prices else ()
    for name in ("run", "stage", "status", "last made (UTC)", "artifacts", "took", "tokens", "CPU h", "GPU h", *cost):
        is_text = name in ("run", "stage", "status", "last made (UTC)")
        shown.add_column(name, justify="left" if is_text else "right")
    for address in addresses:
        for place, record in enumerate(records(address)):
            shown.add_row(
                "" if place else address,
                record.stage,
                record.status,
                record.finished.replace("T", " ").removesuffix("Z"),
                record.progress,
                f"{record.wall_time_s:,.1f} s",
                f"{record.num_tokens:,}" if record.num_tokens else "",
                *(f"{hours:,.3f}" if hours else "" for hours in (record.hours["CPU"], record.hours["GPU"])),
                *(f"{prices.of(record):,.2f}" for _ in cost),
            )
        shown.add_section()
    return shown


def verify(address: str) -> tuple[int, list[str]]:
    """Read every artifact of a run to its last byte.

    Returns:
        Number of artifacts, and those whose content is not what their manifest says, in words.
    """
    run, found = RunDirectory(address), []
    places = [place for folders in STAGES.values() for folder in folders for place in _artifacts(run, folder, _DEEPEST)]
    for name, manifest in places:
        damage = _damage(run, name, manifest)
        if damage is None and isinstance(manifest, Manifest) and not _is_as_made(run, name, manifest):
            damage = f"{run.path(name)}: another content than its manifest says"
        found += [damage] if damage else []
    return len(places), found


def _is_as_made(run: RunDirectory, name: str, manifest: Manifest) -> bool:
    """Every file is read; of a global model that is taken as it is configuration, tokenizer and weights, wherever they lie."""
    if name == GLOBAL_MODEL and REFERENCE in run.names(name):
        return manifest.content_hash == model_files.content_hash(global_model_folder(run))
    with contextlib.ExitStack() as stack:
        if run.is_local:
            folder = run.fetch(name)
        else:  # what is in the store now, not the copy that was made of it once
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scpo_ray_verify_")))
            run.copy(name, folder)
        if wrong_file(folder, manifest) is not None:
            return False
        return manifest.content_hash in (hash_folder(folder), model_files.content_hash(folder))


def _record(
    address: str,
    stage: str,
    manifests: list[Manifest],
    *,
    damage: str,
    is_unfinished: bool,
    num_missing: int,
    num_failed: int,
) -> StageRecord:
    return StageRecord(
        address,
        stage,
        len(manifests),
        num_missing,
        num_failed,
        damage,
        is_unfinished,
        max((manifest.created for manifest in manifests), default=""),
        sum(_seconds(manifest) for manifest in manifests),
        sum(tokens for manifest in manifests if isinstance(tokens := manifest.statistics.get("num_tokens"), int)),
        {
            name: sum(_seconds(manifest) * manifest.reserved.get(name, 0.0) for manifest in manifests) / 3600
            for name in ("CPU", "GPU")
        },
    )


def _seconds(manifest: Manifest) -> float:
    """A trained model's manifest times its writing; the training itself is among its statistics."""
    trained = manifest.statistics.get("wall_time_s")
    return trained if isinstance(trained, float) else manifest.wall_time_s


def _is_run(run: RunDirectory) -> bool:
    names = run.names("")
    return "config.yaml" in names or any(_has_manifest(run, folder) for folder in ("prepared", "global_model"))


def _has_manifest(run: RunDirectory, name: str) -> bool:
    return MANIFEST in run.names(name)


def _artifacts(run: RunDirectory, folder: str, depth: int) -> Iterator[tuple[str, Manifest | str]]:
    """The folder, if it is an artifact, else those in it; where a manifest cannot be read, what is wrong with it."""
    try:
        manifest: Manifest | str | None = run.manifest(folder)
    except ArtifactError as error:
        manifest = str(error)
    if manifest is not None:
        yield folder, manifest
    elif depth:
        for name in run.folders(folder):
            if name not in _NOT_RESULTS:
                yield from _artifacts(run, f"{folder}/{name}", depth - 1)
