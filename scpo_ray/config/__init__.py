"""Every setting, with its default, unit and check: one frozen model per stage.

Defaults live here and nowhere else. `scpo_ray.cli.load_config` fills these models from a YAML file and the command
line; functions receive the smallest sub-config that they need.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from scpo_ray.config.data import (
    AtlasConfig,
    CommunityField,
    GeneralPreferencesConfig,
    GlobalOpinionsConfig,
    PairFilesConfig,
    PrepareConfig,
    PrismConfig,
)
from scpo_ray.config.ppo import BestOfNConfig, LearnerConfig, PolicyEvaluationConfig, PpoConfig, SftConfig
from scpo_ray.config.results import EvaluateConfig, ReportConfig
from scpo_ray.config.scoring import FormatConfig, ScoreConfig
from scpo_ray.config.section import NOT_IDENTITY, Address, Section
from scpo_ray.config.selection import Arm, SelectConfig, SelectionStrategy
from scpo_ray.config.training import LoraConfig, ModelConfig, OptimizationConfig, TrainConfig, TrainGlobalConfig
from scpo_ray.config.tuning import Objective, SearchRange, TuneConfig, Value

__all__ = [
    "Arm",
    "AtlasConfig",
    "BestOfNConfig",
    "CommunityField",
    "Config",
    "EvaluateConfig",
    "FormatConfig",
    "GeneralPreferencesConfig",
    "GlobalOpinionsConfig",
    "LearnerConfig",
    "LoraConfig",
    "ModelConfig",
    "Objective",
    "OptimizationConfig",
    "PairFilesConfig",
    "PolicyEvaluationConfig",
    "PpoConfig",
    "PrepareConfig",
    "PrismConfig",
    "ReportConfig",
    "ScoreConfig",
    "SearchRange",
    "SelectConfig",
    "SelectionStrategy",
    "SftConfig",
    "TrainConfig",
    "TrainGlobalConfig",
    "TuneConfig",
    "Value",
    "reason_to_be_shared",
    "settings_of",
]


class Config(Section):
    """One run, from data to report."""

    run_dir: Annotated[Address, Field(min_length=1), AfterValidator(os.path.expanduser)] = "runs/default"
    """Where the artifacts go: a path, s3:// or gs:// address."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seeds the world, initialisation and data order."""

    rebuild: bool = False
    """Remake artifacts that another config made, instead of refusing."""

    dry_run: bool = Field(default=False, json_schema_extra=NOT_IDENTITY)
    """Check everything, print the plan (`--dry-run`), start nothing."""

    log_format: Literal["text", "json"] = Field(default="text", json_schema_extra=NOT_IDENTITY)
    """json: no progress bars; every process logs lines of JSON with run, stage, community and rank."""

    prepare: PrepareConfig = PrepareConfig()
    format: FormatConfig = FormatConfig()
    train_global: TrainGlobalConfig = TrainGlobalConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    tune: TuneConfig = TuneConfig()
    sft: SftConfig = SftConfig()
    ppo: PpoConfig = PpoConfig()
    best_of_n: BestOfNConfig = BestOfNConfig()

    per_community: dict[str, dict[str, Value]] = Field(default_factory=dict)
    """Community -> settings of `select` and `train` that are others for it, by dotted key, e.g.
    {Chile: {select.agreement_threshold: 0.6}}; what a search with tune.per_community finds."""

    def with_settings(self, settings: Mapping[str, Value]) -> "Config":
        """The same with other values, by dotted key.

        Raises:
            ValidationError: a key is unknown, or a value is not one that it takes.
        """
        values = self.model_dump(exclude_unset=True)
        for key, value in settings.items():
            *sections, name = key.split(".")
            below = values
            for part in sections:
                below = below.setdefault(part, {})
            below[name] = value
        return type(self).model_validate(values)

    def for_community(self, community: str) -> "Config":
        """What holds for one community."""
        settings = self.per_community.get(community)
        if not settings:
            return self
        return self.model_copy(update={"per_community": {}}).with_settings(settings)

    @model_validator(mode="after")
    def _per_community_is_legal(self) -> "Config":
        for community, settings in self.per_community.items():
            for key in settings:
                reason = reason_to_be_shared(key)
                if reason is not None:
                    raise ValueError(f"{community}: {key}: {reason}")
            try:
                self.for_community(community)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                raise ValueError(f"{community}: {first['input']!r}: {first['msg']}") from None
        return self


_SHARED = {
    "select.strategy": "all communities of a run have one strategy; use controls to compare",
    "select.controls": "controls are compared with a strategy, they are none",
    "select.curve_thresholds": "the points of curves are the same for all",
    "select.curve_shares": "the points of curves are the same for all",
    "train.communities": "it names communities itself",
    "train.num_seeds": "every model is trained with the same seeds",
}


def reason_to_be_shared(key: str) -> str | None:
    """Why a setting cannot differ between the communities of a run; None where it can."""
    known = settings_of()
    if key not in known:
        return "unknown key; --help lists all settings"
    if not key.startswith(("select.", "train.")):
        return "only settings of select and train may differ"
    if not known[key]:
        return "changes cost, not the result; it is one for all"
    return _SHARED.get(key)


def settings_of(fields: Mapping[str, FieldInfo] = Config.model_fields, prefix: str = "") -> dict[str, bool]:
    """Dotted key of every setting -> whether the result depends on it."""
    found: dict[str, bool] = {}
    for name, field in fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found |= settings_of(annotation.model_fields, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = field.json_schema_extra != NOT_IDENTITY
    return found
