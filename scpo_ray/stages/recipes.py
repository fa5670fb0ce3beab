"""Which settings and inputs make each artifact of a run: how a stage knows its own work, and refuses foreign work."""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from scpo_ray import model_files
from scpo_ray.artifacts import Manifest, Recipe, RunDirectory, content_hash_of
from scpo_ray.config import Arm, Config, Value
from scpo_ray.errors import ArtifactError, ConfigError
from scpo_ray.records import ModelName, safe_name
from scpo_ray.stages.needs import reserved

PREPARED, GLOBAL_MODEL, SCORES, EVALUATION = "prepared", "global_model", "scores", "evaluation"
START_POLICY, POLICY_EVALUATION, BEST_OF_N = "start_policy", "policy_evaluation", "best_of_n"
OTHER_RULER, OTHER_SCORES = "other_ruler", "other_scores"
"""A second global model and its rewards, for the control whose ruler is not its starting model."""


def prepared(config: Config) -> Recipe:
    """Responses, pairs and splits: from the configured data sets. A local file counts by name and content, not place."""
    prepare = config.prepare
    unused = {
        f"prepare.{name}."
        for name in ("atlas", "prism", "global_opinions", "pair_files", "general_preferences")
        if name not in prepare.datasets
    }
    identity = {key: value for key, value in prepare.identity("prepare").items() if not key.startswith(tuple(unused))}
    if "atlas" in prepare.datasets:
        identity["seed"] = config.seed
    inputs = {}
    for key, addresses in _sources(config).items():
        names = [Path(address).name if _is_local(address) else address for address in addresses]
        identity[key] = names if isinstance(identity[key], list) else names[0]
        for position, address in enumerate(addresses):
            for path in _local_files(address):
                inputs[f"{key}[{position}] {path.name}"] = _hash_file(path)
    return Recipe(PREPARED, "prepare", identity, inputs, config.seed)


def global_model(config: Config, run: RunDirectory, *, other: bool = False) -> Recipe:
    """The global reward model: trained on prepared pairs, or taken as it is when it is not to be trained.

    Raises:
        ConfigError: another ruler is asked for, and the global model is taken as it is.
    """
    train = config.train_global
    if other and train.epochs == 0:
        raise ConfigError(
            "select.controls: other_ruler trains a second global model with the next seed, but train_global.epochs is 0; "
            "leave the control out, or train the global model"
        )
    seed = config.seed + other
    identity = train.identity("train_global") | config.format.identity("format") | {"seed": seed}
    if train.model is not None:
        identity = {key: value for key, value in identity.items() if not key.startswith("train_global.scratch.")}
    inputs = {PREPARED: checked(run, prepared(config)).content_hash}
    if train.model is not None:
        inputs["train_global.model"] = _model_content(train.model)
    if train.model is not None and train.epochs == 0:
        identity = {"train_global.model": train.model, "train_global.epochs": train.epochs}
        del inputs[PREPARED]
    held = reserved(config, "train_global") if train.epochs else {}
    return Recipe(OTHER_RULER if other else GLOBAL_MODEL, "train_global", identity, inputs, seed, held)


def scores(config: Config, run: RunDirectory, *, other: bool = False) -> Recipe:
    """The global model's rewards (or the other ruler's) for every response."""
    ruler = global_model(config, run, other=other)
    inputs = {
        PREPARED: checked(run, prepared(config)).content_hash,
        ruler.name: checked(run, ruler).content_hash,
    }
    identity = config.format.identity("format") | {"score.precision": score_precision(config)}
    return Recipe(OTHER_SCORES if other else SCORES, "score", identity, inputs, config.seed, reserved(config, "score"))


def score_precision(config: Config) -> str:
    """`score.precision`, auto resolved."""
    from scpo_ray.precision import resolved_precision  # with torch; most who ask for a recipe need none

    return resolved_precision(config.score.precision, on_gpu=config.score.gpus_per_scorer > 0)


def decisions(config: Config, run: RunDirectory, arm: Arm) -> Recipe:
    """What one arm decided for every pair."""
    identity = {
        key: value
        for key, value in config.select.identity("select").items()
        if key not in ("select.strategy", "select.controls", "select.curve_thresholds", "select.curve_shares")
    }
    identity |= {"select.agreement_threshold": arm.agreement_threshold, "training share": arm.training_share}
    identity["seed"] = config.seed
    own = {community: _of_section(settings, "select") for community, settings in config.per_community.items()}
    identity |= {f"per_community.{community}": settings for community, settings in own.items() if settings}
    of_ruler = scores(config, run, other=arm.strategy == "other_ruler")
    inputs = {
        PREPARED: checked(run, prepared(config)).content_hash,
        of_ruler.name: checked(run, of_ruler).content_hash,
    }
    return Recipe(f"decisions/{arm.name}", "select", identity, inputs, config.seed)


def reward_model(config: Config, run: RunDirectory, arm: Arm, name: ModelName) -> Recipe:
    """One community's reward model under one arm; replicates differ in their seed."""
    decided = checked(run, decisions(config, run, arm))
    hashes = decided.statistics["content_hashes"]
    assert isinstance(hashes, dict)
    train = config.for_community(name.community).train
    identity = train.identity("train") | config.format.identity("format")
    if train.equal_steps:
        offered = decided.statistics["communities"]
        assert isinstance(offered, dict)
        identity["offered items"] = offered[name.community]["offered"][train.batching]
    return Recipe(
        model_folder(config, name),
        "train",
        identity | {"arm": name.arm, "community": name.community, "seed": config.seed + name.replicate},
        {
            f"decisions/{arm.name}": hashes[name.community],
            GLOBAL_MODEL: checked(run, global_model(config, run)).content_hash,
        },
        config.seed + name.replicate,
        reserved(config, "train"),
    )


def model_folder(config: Config, name: ModelName) -> str:
    """Where a model lies: `reward_models/COMMUNITY`; `controls/ARM/COMMUNITY` for what runs beside; `replicates/N/...`."""
    folder = "reward_models" if name.arm == config.select.strategy else f"controls/{name.arm}"
    replicate = f"replicates/{name.replicate}/" if name.replicate else ""
    return f"{replicate}{folder}/{safe_name(name.community)}"


def evaluation(config: Config, run: RunDirectory, trained: dict[ModelName, Manifest]) -> Recipe:
    """Rewards and metrics of the trained models on validation and test pairs."""
    identity = config.evaluate.identity("evaluate") | {"score.precision": score_precision(config), "seed": config.seed}
    inputs = {str(name): manifest.content_hash for name, manifest in trained.items()}
    inputs[SCORES] = checked(run, scores(config, run)).content_hash
    for arm in config.select.arms:
        inputs[f"decisions/{arm.name}"] = checked(run, decisions(config, run, arm)).content_hash
    return Recipe(EVALUATION, "evaluate", identity, inputs, config.seed, reserved(config, "evaluate"))


def start_policy(config: Config, run: RunDirectory) -> Recipe:
    """The policy that PPO starts from and is held to: taught on chosen responses."""
    identity = (
        config.sft.identity("sft") | config.format.identity("format") | _of_prompts(config) | {"seed": config.seed}
    )
    if config.sft.policy is not None:
        identity = {key: value for key, value in identity.items() if not key.startswith("sft.scratch.")}
    inputs = {PREPARED: checked(run, prepared(config)).content_hash}
    if config.sft.policy is not None:
        inputs["sft.policy"] = _model_content(config.sft.policy)
    return Recipe(START_POLICY, "sft", identity, inputs, config.seed, reserved(config, "sft"))


def policy(
    config: Config, run: RunDirectory, *, name: str, composition: str, reward_models: Mapping[str, str]
) -> Recipe:
    """One policy towards communities.

    Args:
        name: the community (composition `each`), or the composition.
        reward_models: community -> content hash of its reward model.
    """
    settings = config.ppo.identity("ppo")
    identity = {key: value for key, value in settings.items() if not key.startswith("ppo.evaluation.")}
    if composition in ("each", "routed", "max_min"):
        del identity["ppo.weights"]
    identity |= config.format.identity("format") | {"score.precision": score_precision(config)} | _of_prompts(config)
    identity |= {"composition": composition, "communities": list(reward_models), "seed": config.seed}
    inputs = {f"reward model of {community}": content for community, content in reward_models.items()}
    inputs |= {PREPARED: checked(run, prepared(config)).content_hash, "start": start_policy_content(config, run)}
    folder = f"policies/{safe_name(name)}" if composition == "each" else f"composed_policies/{composition}"
    return Recipe(folder, "ppo", identity, inputs, config.seed, reserved(config, "ppo"))


def start_policy_content(config: Config, run: RunDirectory) -> str:
    """What `ppo.policy` holds, or the run's own start policy."""
    if config.ppo.policy is not None:
        return _model_content(config.ppo.policy)
    return checked(run, start_policy(config, run)).content_hash


def policy_evaluation(config: Config, run: RunDirectory, *, inputs: Mapping[str, str]) -> Recipe:
    """What policies write to prompts that none has seen, and what reward models think of it.

    Args:
        inputs: content hashes of the policies and the reward models.
    """
    identity = _of_evaluation(config)
    return Recipe(POLICY_EVALUATION, "ppo", identity, dict(inputs), config.seed, reserved(config, "ppo"))


def best_of_n(config: Config, run: RunDirectory, *, inputs: Mapping[str, str]) -> Recipe:
    """The start policy's best of n responses under every community's reward model."""
    identity = _of_evaluation(config) | config.best_of_n.identity("best_of_n")
    return Recipe(BEST_OF_N, "best_of_n", identity, dict(inputs), config.seed, reserved(config, "best_of_n"))


def _of_evaluation(config: Config) -> dict[str, object]:
    kept = ("ppo.evaluation.", "ppo.max_response_tokens", "ppo.temperature")
    settings = {key: value for key, value in config.ppo.identity("ppo").items() if key.startswith(kept)}
    precision = {"score.precision": score_precision(config), "seed": config.seed}
    return settings | config.format.identity("format") | _of_prompts(config) | precision


def _of_prompts(config: Config) -> dict[str, object]:
    """On which prompts a policy is trained, and on which it is measured."""
    return {
        "ppo.test_prompt_fraction": config.ppo.test_prompt_fraction,
        "prepare.split_salt": config.prepare.split_salt,
    }


def checked(run: RunDirectory, recipe: Recipe) -> Manifest:
    """The manifest of an input artifact that this config would have made.

    Raises:
        ArtifactError: it is missing, or another config or other inputs made it; names the job that makes it.
    """
    manifest = run.require(recipe.name, job=recipe.stage)
    difference = recipe.difference(manifest)
    if difference is not None:
        raise ArtifactError(
            f"{run.path(recipe.name)}: {difference}; remake it with jobs/{recipe.stage}.py --rebuild true, or use another "
            "--run_dir"
        )
    return manifest


def _of_section(settings: Mapping[str, Value], section: str) -> dict[str, Value]:
    return {key: value for key, value in settings.items() if key.startswith(f"{section}.")}


def content_of(identifiers: Iterable[str]) -> str:
    """A hash of a set of identifiers."""
    return content_hash_of(sorted(identifiers))


def _sources(config: Config) -> dict[str, tuple[str, ...]]:
    """Setting -> addresses, for every configured data set that is read from somewhere."""
    prepare = config.prepare
    named = {
        "prism": ("prepare.prism.path", (prepare.prism.path,)),
        "global_opinions": ("prepare.global_opinions.path", (prepare.global_opinions.path,)),
        "pair_files": ("prepare.pair_files.paths", prepare.pair_files.paths),
        "general_preferences": ("prepare.general_preferences.paths", prepare.general_preferences.paths),
    }
    return dict(named[dataset] for dataset in prepare.datasets if dataset in named)


def _is_local(address: str) -> bool:
    return Path(address).expanduser().exists()


def _local_files(address: str) -> list[Path]:
    path = Path(address).expanduser()
    return sorted(path.glob("*.jsonl")) if path.is_dir() else [path] if path.is_file() else []


def _model_content(address: str) -> str:
    """What lies at a model's address: the hub's revision, or a hash of the files."""
    folder = model_files.resolve(address)
    if folder.parent.name == "snapshots":
        return folder.name
    return _hash_model(folder, max(path.stat().st_mtime_ns for path in folder.iterdir()))


@functools.lru_cache(maxsize=16)
def _hash_model(folder: Path, modified_ns: int) -> str:
    return model_files.content_hash(folder)


def _hash_file(path: Path) -> str:
    status = path.stat()
    return _hash_bytes(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=256)
def _hash_bytes(path: Path, modified_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
