"""What a service has to serve: whose models, where they lie, on which scale their rewards are. Loads no model."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from scpo_ray import model_files, models
from scpo_ray.artifacts import Manifest, RunDirectory, content_hash_of
from scpo_ray.config import FormatConfig
from scpo_ray.config.serving import ServeConfig
from scpo_ray.errors import ArtifactError, ConfigError, ModelError
from scpo_ray.serving.adapters import is_plain

_CARD_ROW = re.compile(r"^\| (.+?) \| (.+) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Scale:
    """Of a model's rewards, from its community's validation pairs."""

    mean: float
    standard_deviation: float
    temperature: float
    temperature_interval: tuple[float, float] | None
    """95%; None where validation pairs come from fewer than two annotators."""
    num_pairs: int


@dataclass(frozen=True)
class ServedModel:
    """A community's reward model."""

    community: str
    kind: Literal["full", "adapter", "global"]
    folder: str
    """Of the whole model; for an adapter, of the base that it sits on."""
    content_hash: str
    format: FormatConfig
    adapter: str | None = None
    scale: Scale | None = None
    shares_base: bool = False
    """Served from one base with all others of its folder; the global model too, where the run's communities are adapters."""
    facts: Mapping[str, str] = field(default_factory=dict)
    stamp: str | None = None
    """Of its files when the catalog was read."""

    @property
    def key(self) -> str:
        """Of what must be in memory to score: the base that adapters share, or the whole model."""
        return f"{'base' if self.shares_base else 'model'}:{self.folder}:{self.format.model_dump_json()}"

    @property
    def identity(self) -> str:
        """Of its rewards: equal weights that read texts alike."""
        return f"{self.content_hash}:{self.format.model_dump_json()}"


@dataclass(frozen=True)
class Catalog:
    """Everyone who is served."""

    models: dict[str, ServedModel]
    precision: str

    @property
    def digest(self) -> str:
        """Changes with every weight and scale, with how texts are read, and with the precision."""
        parts = [(model.community, model.identity, str(model.scale)) for model in self.models.values()]
        return content_hash_of([self.precision, *sorted(parts)])[:16]

    def sharing(self, base: str) -> dict[str, ServedModel]:
        """Community -> model, for all that sit on one base."""
        return {name: model for name, model in self.models.items() if model.key == base}


def read_catalog(config: ServeConfig) -> Catalog:
    """Everything that the settings ask for.

    Raises:
        ArtifactError: the run is not finished, or its evaluation is not of its models.
        ConfigError: a community to serve is not there.
        ModelError: a model is no reward model, or its weights are not safetensors.
    """
    found = _of_run(RunDirectory(config.run_dir)) if config.run_dir is not None else {}
    for community, address in config.models.items():
        found[community] = _from_elsewhere(community, address, config.format or FormatConfig())
    if config.communities is not None:
        missing = [name for name in config.communities if name not in found]
        if missing:
            raise ConfigError(
                f"communities: {missing[0]!r} has no model; there are {', '.join(sorted(found)) or 'none'}"
            )
        found = {name: found[name] for name in config.communities}
    found = _whole_where_alone(found)
    for model in found.values():
        _check(model)
    return Catalog({name: replace(model, stamp=stamp(model)) for name, model in found.items()}, config.precision)


def _whole_where_alone(found: dict[str, ServedModel]) -> dict[str, ServedModel]:
    """An adapter that would have its base for itself is served as the whole model that training left beside it: less to
    multiply."""
    num_sharing = Counter(model.key for model in found.values())
    return {
        name: replace(model, kind="full", folder=str(Path(model.adapter).parent), adapter=None, shares_base=False)
        if model.adapter is not None and num_sharing[model.key] == 1
        else model
        for name, model in found.items()
    }


def stamp(model: ServedModel) -> str:
    """Changes when a file of the model is written anew, without reading it."""
    folders = [Path(folder) for folder in (model.folder, model.adapter) if folder is not None]
    states = [(path.name, path.stat()) for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    return content_hash_of([(name, state.st_size, state.st_mtime_ns) for name, state in states])


def _of_run(run: RunDirectory) -> dict[str, ServedModel]:
    """The models of the main strategy, and the global model for the majority."""
    ruler = run.require("global_model", job="train_global")
    majority = run.require("prepared", job="prepare").statistics["majority"]
    assert isinstance(majority, list)
    evaluation = run.require("evaluation", job="evaluate")
    if "scales.parquet" not in run.names("evaluation"):
        raise ArtifactError(
            f"{run.path('evaluation')}: no scales.parquet, an earlier release made it; remake it with jobs/evaluate.py "
            "--rebuild true"
        )
    scales = {row["community"]: _scale(row) for row in run.read_table("evaluation/scales.parquet").to_pylist()}
    base = str(_global_folder(run, ruler))
    found: dict[str, ServedModel] = {}
    format_config = FormatConfig()
    for name in run.names("reward_models"):
        manifest = run.find(f"reward_models/{name}")
        if manifest is None:
            continue  # being trained
        community = str(manifest.identity["community"])
        if evaluation.inputs.get(f"{manifest.identity['arm']}/{community}") != manifest.content_hash:
            raise ArtifactError(
                f"{run.path('evaluation')}: not of {community}'s present model; run jobs/evaluate.py again"
            )
        format_config = _format(manifest)
        found[community] = _trained(run, manifest, ruler, base, scales.get(community))
    if not found:
        raise ArtifactError(f"{run.path('reward_models')}: no trained model; run jobs/pipeline.py first")
    for community in majority:
        if community not in found:
            found[community] = ServedModel(
                community,
                "global",
                base,
                ruler.content_hash,
                format_config,
                scale=scales.get(community),
                shares_base=any(model.folder == base for model in found.values()),
                facts=read_card(Path(base)),
            )
    return found


def _trained(run: RunDirectory, manifest: Manifest, ruler: Manifest, base: str, scale: Scale | None) -> ServedModel:
    folder = run.fetch(manifest.name)
    community, adapter = str(manifest.identity["community"]), folder / models.ADAPTER
    is_adapter = _can_share(folder, adapter)
    if is_adapter and manifest.inputs.get("global_model") != ruler.content_hash:
        raise ArtifactError(
            f"{run.path(manifest.name)}: its adapter is of another global model; run jobs/train.py again"
        )
    return ServedModel(
        community,
        "adapter" if is_adapter else "full",
        base if is_adapter else str(folder),
        manifest.content_hash,
        _format(manifest),
        adapter=str(adapter) if is_adapter else None,
        scale=scale,
        shares_base=is_adapter,
        facts=read_card(folder),
    )


def _can_share(folder: Path, adapter: Path) -> bool:
    """Whether there is an adapter, and a batch may mix communities: not where it is no plain LoRA of linear layers, nor where
    layers also read tensors that have no row per sequence, as DeBERTa's relative positions. Their models are served whole."""
    path = adapter / models.ADAPTER_CONFIG
    if not path.is_file():
        return False
    try:
        architecture = str(json.loads((folder / "config.json").read_text()).get("model_type"))
        return not architecture.startswith("deberta") and is_plain(json.loads(path.read_text()))
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path}, or config.json above it: damaged ({error}); run jobs/train.py again") from error


def _from_elsewhere(community: str, address: str, format_config: FormatConfig) -> ServedModel:
    folder = model_files.resolve(address)
    content = model_files.content_hash(folder)
    return ServedModel(community, "full", str(folder), content, format_config, facts={"address": address})


def _check(model: ServedModel) -> None:
    """Refuse what must not or cannot be loaded, before a replica tries."""
    folder = Path(model.folder)
    models.check(folder, may_lack_head=False, max_tokens=model.format.max_tokens)
    if (folder / models.ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{folder}: {models.ADAPTER_CONFIG} beside the weights; merge the adapter into them, or remove it"
        )
    weights = list(folder.glob("model*.safetensors"))
    if not weights:
        raise ModelError(f"{folder}: no safetensors weights; services load nothing else (pickles run code), convert it")
    for path in weights:  # a cut file is refused here, not when it is first asked for
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ModelError(f"{path}: damaged ({error}); copy it again") from error


def _global_folder(run: RunDirectory, ruler: Manifest) -> Path:
    if "reference.json" in run.names("global_model"):
        address = str(run.read_json("global_model/reference.json")["address"])
        folder = model_files.resolve(address)
        if model_files.content_hash(folder) != ruler.content_hash:
            raise ArtifactError(
                f"{address}: not the model any more that {run.address} was made with; bring it back, or make the run anew"
            )
        return folder
    return run.fetch(ruler.name)


def _format(manifest: Manifest) -> FormatConfig:
    """As the model was trained."""
    settings = {
        key.removeprefix("format."): value for key, value in manifest.identity.items() if key.startswith("format.")
    }
    return FormatConfig.model_validate(settings)


def _scale(row: Mapping[str, float]) -> Scale | None:
    mean, deviation, temperature = (row[key] for key in ("mean", "standard_deviation", "temperature"))
    if not math.isfinite(mean + deviation + temperature):
        return None
    interval = (row["temperature_low"], row["temperature_high"])
    return Scale(
        mean, deviation, temperature, interval if math.isfinite(sum(interval)) else None, int(row["num_pairs"])
    )


def read_card(folder: Path) -> dict[str, str]:
    """The first table of a model card that this project wrote."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    head = path.read_text().partition("\n## ")[0]
    rows = {key.strip(): value.strip() for key, value in _CARD_ROW.findall(head)}
    return {key: value for key, value in rows.items() if key.strip("- ")}
