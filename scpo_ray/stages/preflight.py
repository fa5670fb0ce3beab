"""Before any accelerator is taken: can the cluster ever place this job, can it write, do the inputs match; and what it will cost.

`--dry-run` stops after it. What can be refused without a model library is refused first, in a second or two.
"""

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pyarrow.fs as pafs

from scpo_ray.artifacts import RunDirectory
from scpo_ray.buckets import check_host
from scpo_ray.capacity import Capacity, capacity
from scpo_ray.config import Config
from scpo_ray.core.placement import reason_unplaceable
from scpo_ray.errors import ArtifactError, ConfigError, ModelError, StorageError
from scpo_ray.folders import storage_errors
from scpo_ray.runtime import console, make_console
from scpo_ray.stages import recipes
from scpo_ray.stages.needs import JOBS, needs_of
from scpo_ray.stages.train import model_names
from scpo_ray.training.task import check_checkpoint_dir, checkpoints_of, newest_checkpoint, refuse_other_layout

_UPLOADS = "working_dir_files"
"""Ray's folder on every node for what jobs brought with them."""
_STORAGE_S = 2
"""For which Google's client tries a bucket again."""


def passed(config: Config, job: str) -> bool:
    """Refuse now what would fail later, and show the plan; of a job that prepares its data first it is shown `after_prepare`, but
    under `--dry_run`.

    Returns:
        Whether the job is to go on: False under `--dry_run`, after the plan.

    Raises:
        ConfigError: the cluster can never place a stage, or no device has the memory for its model.
        StorageError: the run directory cannot be written.
        ArtifactError: an artifact that is there was made by another config, or from other inputs.
        ModelError: a model cannot be used.
        DataError: under `--dry_run`, the data cannot be prepared.
        TrainingError: an unfinished training was left by another number of workers.
    """
    has = capacity(config.log_format)
    check_storage(config)
    check_scratch(config, job)
    directory = RunDirectory(config.run_dir)
    made = check_artifacts(config, directory, job)
    for stage in JOBS[job]:
        if stage not in made:  # a report of what a cluster has trained can be made anywhere
            check_placement(config, stage, has)
    check_communities(config, directory, job)
    check_checkpoints(config, directory, JOBS[job])
    check_policy_checkpoints(config, directory, job)
    if not config.dry_run and not any(needs_of(config, stage) for stage in JOBS[job]):
        return True  # no model has a part in it
    from scpo_ray.stages import plan  # with the model libraries, which take seconds to import

    for stage in JOBS[job]:
        plan.check_model(config, stage)
    check_policies(config, directory, job)
    if not config.dry_run and "prepare" in JOBS[job] and "prepare" not in made:
        return True  # the plan needs the data: the job shows it when that is prepared, for which no actor starts
    with _prepared(config, job, made) as directory:
        show_plan(config, directory, job, made, has)
    return not config.dry_run


def show_plan(config: Config, directory: RunDirectory, job: str, made: Collection[str], has: Capacity) -> None:
    """What starts where, and what it takes; on stdout under `--dry_run`, else among what is said of the progress.

    Args:
        directory: where the data is prepared.
        made: stages of which nothing is left to do.

    Raises:
        ConfigError: no device has the memory for a stage's model.
    """
    from scpo_ray.stages import plan

    plans = plan.make(config, directory, JOBS[job], made, has)
    for line in plans:
        plan.check_memory(line, has)
    if config.dry_run or any(line.needs for line in plans):
        (make_console(stderr=False) if config.dry_run else console).print(plan.table(plans, has))


def after_prepare(config: Config, job: str) -> None:
    """The plan of a job whose data has just been prepared.

    Raises:
        ConfigError: no device has the memory for a stage's model.
    """
    show_plan(config, RunDirectory(config.run_dir), job, {"prepare"}, capacity(config.log_format))


@contextlib.contextmanager
def _prepared(config: Config, job: str, made: Collection[str]) -> Iterator[RunDirectory]:
    """The run directory; before its data is prepared another, which goes again, in which it is."""
    if "prepare" not in JOBS[job] or "prepare" in made:
        yield RunDirectory(config.run_dir)
        return
    from scpo_ray.stages import prepare

    console.print("dry run: preparing the data in a temporary folder, to count it")
    with tempfile.TemporaryDirectory(prefix="scpo_ray_dry_run_") as folder:
        prepare.run(config.with_settings({"run_dir": folder}))
        yield RunDirectory(folder)


def check_placement(config: Config, stage: str, has: Capacity) -> None:
    """Refuse what the cluster, with all that its autoscaler may add, can never hold.

    Raises:
        ConfigError: with what is needed, what is there, and the settings to change.
    """
    needs = needs_of(config, stage)
    reason = needs and reason_unplaceable(needs.bundles, has.nodes)
    if needs and reason:
        raise ConfigError(f"{stage}: {needs.what}: {reason} ({has.where}); {needs.remedy}, or take a larger cluster")


def check_storage(config: Config) -> None:
    """Write something where the run directory is or will be, and take it away again.

    Raises:
        ConfigError: it is in the folder that was uploaded for this job.
        StorageError: it cannot be written, or the bucket is not there.
    """
    _try("run_dir", config.run_dir)


def _try(setting: str, address: str) -> None:
    check_host(address)
    directory = RunDirectory(address)
    if directory.is_local:
        folder = Path(directory.absolute_address)
        _refuse_upload(setting, folder)
        with storage_errors(address):
            _write_beside(folder)
    else:
        _try_store(address)


def _refuse_upload(setting: str, folder: Path) -> None:
    """What a submitted job writes into its own upload is on one node alone, and goes with it."""
    here = Path.cwd()
    if _UPLOADS in here.parts and folder.resolve().is_relative_to(here):
        raise ConfigError(
            f"{setting}: {folder}: inside the folder that was uploaded for this job, which Ray deletes; give a place that all "
            f"nodes share (--{setting} /shared/..., s3://...)"
        )


def _try_store(address: str) -> None:
    with storage_errors(address):
        is_google = address.startswith(("gs://", "gcs://"))  # whose client tries for 15 minutes by default
        patience = f"?retry_limit_seconds={_STORAGE_S}" if is_google else ""
        filesystem, path = pafs.FileSystem.from_uri(address + patience)
        path = path.rstrip("/")
        is_new = filesystem.get_file_info(path).type == pafs.FileType.NotFound
        probe = f"{path}/.preflight-{uuid.uuid4().hex}"
        with filesystem.open_output_stream(probe) as stream:
            stream.write(b"scpo_ray")
        filesystem.delete_file(probe)
        if is_new and not filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
            filesystem.delete_dir(path)  # Arrow leaves a marker of it; another job may have begun there meanwhile


def check_scratch(config: Config, job: str) -> None:
    """Where unfinished trainings and scores will be kept.

    Raises:
        ConfigError: the run is on an object store, and no disk is named; or a folder is in what was uploaded for this job.
        StorageError: a place cannot be written.
    """
    stages = {"train" if stage == "tune" else stage for stage in JOBS[job]}
    for stage in ("train_global", "train", "sft", "ppo"):
        if stage in stages:
            place = getattr(config, stage).checkpoint_dir
            check_checkpoint_dir(config.run_dir, place, stage)
            if place is not None:
                _try_scratch(f"{stage}.checkpoint_dir", place)
    if config.score.cache_dir is not None and "score" in stages:
        _try_scratch("score.cache_dir", config.score.cache_dir)


def _try_scratch(setting: str, address: str) -> None:
    try:
        _try(setting, address)
    except StorageError as error:
        raise StorageError(f"{setting}: {error}") from error


def _write_beside(folder: Path) -> None:
    """Into the folder, or where it will be made."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    if not place.is_dir():
        raise NotADirectoryError(20, "is a file, no folder", str(place))
    try:
        with tempfile.TemporaryFile(dir=place):
            return
    except OSError as error:  # which names a file that nobody asked for
        raise type(error)(error.errno, error.strerror, str(folder)) from None


def check_policies(config: Config, directory: RunDirectory, job: str) -> None:
    """Refuse what policies are to be made from, where it is missing or does not fit.

    Raises:
        ScpoError: as the stage itself would, once it had waited for the cluster.
    """
    if job not in ("ppo", "best_of_n"):
        return
    from scpo_ray.stages.policy_plan import make_plan

    make_plan(config, directory, trains=job == "ppo")


def check_communities(config: Config, directory: RunDirectory, job: str) -> None:
    """Refuse communities that the prepared data does not have.

    Raises:
        ConfigError: with those that it has.
    """
    manifest = directory.find(recipes.PREPARED)
    if manifest is None or "prepare" in JOBS[job]:  # preparing looks by itself, also where it is done
        return
    from scpo_ray.stages.prepare import check_known

    known = manifest.statistics["communities"]
    assert isinstance(known, dict)
    for stage in JOBS[job]:
        if stage in ("train_global", "train", "sft", "ppo"):
            check_known(f"{stage}.communities", getattr(config, stage).communities, known)


def check_policy_checkpoints(config: Config, directory: RunDirectory, job: str) -> None:
    """Refuse to resume a policy under another layout than it was begun with.

    Raises:
        TrainingError: with the folder and both numbers.
    """
    if job not in ("sft", "ppo"):
        return
    from scpo_ray.ppo import objective
    from scpo_ray.ppo.checkpoints import checkpoints_in
    from scpo_ray.stages.community_models import community_models, policy_recipe

    settings = config.sft if job == "sft" else config.ppo
    try:
        if job == "sft":
            wanted = [recipes.start_policy(config, directory)]
        else:
            found = community_models(config, directory)
            targets = objective.targets(config.ppo, list(found))
            wanted = [policy_recipe(config, directory, target, found) for target in targets]
    except (ArtifactError, ConfigError, ModelError):  # `check_model` or `check_policies` will say it, where it is whole
        return
    for recipe in wanted:
        if recipe.is_made(directory, rebuild=config.rebuild) is None:
            checkpoints_in(directory, recipe, settings).refuse_other_layout(settings, job)


def check_artifacts(config: Config, directory: RunDirectory, job: str) -> set[str]:
    """Refuse artifacts of another config before anything new is made, not when their turn comes.

    Returns:
        Stages of the job of which nothing is left to do.

    Raises:
        ArtifactError: as the stage itself would; `rebuild` allows it.
    """
    stages, last = JOBS[job], _LAST.get(job, JOBS[job][-1])
    if job == "evaluate" and config.evaluate.models:
        last = "prepare"
    made: set[str] = set()
    for stage, recipes_of in _RECIPES.items():
        wanted = recipes_of(config, directory)
        if stage in stages:
            found = [recipe.is_made(directory, rebuild=config.rebuild) for recipe in wanted]
        else:
            found = [recipes.checked(directory, recipe) if directory.find(recipe.name) else None for recipe in wanted]
        if not all(manifest is not None for manifest in found):
            break  # what follows will be made from something that is not there yet
        made.add(stage)
        if stage == last:
            break
    if last == "evaluate" and "select" in made and _evaluation_is_made(config, directory) and "train" in made:
        made.add("evaluate")
    return made & set(stages)


_LAST = {
    "pipeline": "evaluate",
    "report": "evaluate",
    "tune": "score",
    "sft": "prepare",
    "ppo": "train",
    "best_of_n": "train",
}
"""Job -> the last stage whose artifact it makes or reads; of others, their own."""


def _evaluation_is_made(config: Config, directory: RunDirectory) -> bool:
    """Of other models it is stale and will be made anew; of other settings it is refused."""
    names = [(name, recipes.reward_model(config, directory, arm, name)) for arm, name in model_names(config, directory)]
    trained = {name: made for name, recipe in names if (made := directory.find(recipe.name)) is not None}
    recipe = recipes.evaluation(config, directory, trained)
    found = directory.find(recipe.name)
    if found is not None and dict(found.identity) != recipe.identity:
        recipe.is_made(directory, rebuild=config.rebuild)
    return found is not None and recipe.difference(found) is None


def check_checkpoints(config: Config, directory: RunDirectory, stages: tuple[str, ...]) -> None:
    """Refuse to resume a training with another number of workers than it was begun with.

    Raises:
        TrainingError: with the folder and both numbers.
    """
    for stage in ("train_global", "train"):
        if stage not in stages:
            continue
        settings = getattr(config, stage)
        try:
            wanted = _RECIPES[stage](config, directory)
        except ArtifactError:  # from what is still to be made: there is no checkpoint of it
            return
        for recipe in wanted:
            folder = checkpoints_of(
                recipe, "checkpoints", run_address=directory.absolute_address, place=settings.checkpoint_dir
            )
            found, section = newest_checkpoint(folder), f"{stage}."
            refuse_other_layout(found, settings.num_workers, settings.zero_stage, section=section, is_elastic=True)


def _reward_models(config: Config, directory: RunDirectory) -> list[recipes.Recipe]:
    return [recipes.reward_model(config, directory, arm, name) for arm, name in model_names(config, directory)]


def _rulers(config: Config) -> tuple[bool, ...]:
    """The global model, and the other ruler where a control needs one."""
    return (False, True) if config.select.needs_other_ruler else (False,)


_RECIPES: dict[str, Callable[[Config, RunDirectory], list[recipes.Recipe]]] = {
    "prepare": lambda config, _: [recipes.prepared(config)],
    "train_global": lambda config, run: [recipes.global_model(config, run, other=other) for other in _rulers(config)],
    "score": lambda config, run: [recipes.scores(config, run, other=other) for other in _rulers(config)],
    "select": lambda config, run: [recipes.decisions(config, run, arm) for arm in config.select.arms],
    "train": _reward_models,
}
